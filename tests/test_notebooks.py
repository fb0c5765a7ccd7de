"""What the notebooks promise: they run from top to bottom, and what is stored in them is what they print, and small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import robosteer

ROOT = Path(robosteer.__file__).parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"tour": "EPISODES, PAIRS, SCANNED, SPLITS = 5, 2, 10, 2"}
"""Sizes at which a notebook runs in seconds: the source of its cell that is tagged `parameters`."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALL[path.stem]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_executed_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    stored = path.read_text()
    assert len(stored) < 500_000
    assert not any(place in stored for place in (str(Path.home()), str(ROOT), "/tmp/"))
