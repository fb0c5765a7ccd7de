"""What the command line lets one choose from, apart from the modules that do it: `--help` must answer at once."""

CODECS = ("h264", "av1")
ORIENTATIONS = ("keep", "flip", "rotate")
DROID_ACTIONS = ("joint_velocity", "joint_position", "cartesian_velocity", "cartesian_position")
