"""Files that demonstrations come from and go to: LeRobotDataset v3, robomimic and LIBERO HDF5, DROID, activations."""
