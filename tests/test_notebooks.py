"""What notebooks promise: they run from top to bottom, fail without their data, are stored executed and small."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import robosteer
from steering.reproduce.experiment import run
from steering.reproduce.figures import FIGURES_VARIABLE, RESULTS_VARIABLE
from steering.reproduce.plan import QUICK

ROOT = Path(robosteer.__file__).parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"tour": "EPISODES, PAIRS, SCANNED, SPLITS, STEPS = 5, 2, 10, 2, 4"}
"""Sizes at which a notebook runs in seconds: the source of its cell that is tagged `parameters`."""
OF_RESULTS = [path for path in NOTEBOOKS if path.stem not in SMALL]


def execute(notebook: nbformat.NotebookNode) -> None:
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()


@pytest.fixture(scope="session")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `robosteer reproduce --quick` leaves: the one heavy thing here."""
    work = tmp_path_factory.mktemp("quick")
    run(QUICK, work, work / "results", processes=2, say=lambda _: None, progress=False)
    return work / "results"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem in SMALL], ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALL[path.stem]
    execute(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_RESULTS, ids=lambda path: path.stem)
def test_it_runs_on_results_of_minutes_and_leaves_vector_figures(
    path: Path, quick_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RESULTS_VARIABLE, str(quick_results))
    monkeypatch.setenv(FIGURES_VARIABLE, str(tmp_path))
    execute(nbformat.read(path, as_version=4))
    figures = {file.suffix for file in tmp_path.iterdir()}
    assert figures == {".svg", ".pdf"}
    assert all(b"/FontFile2" in file.read_bytes() for file in tmp_path.glob("*.pdf"))


@pytest.mark.parametrize("path", OF_RESULTS, ids=lambda path: path.stem)
def test_without_its_data_it_fails_in_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    with pytest.raises(CellExecutionError) as failed:
        execute(notebook)
    assert failed.value.ename == "UsageError"
    assert str(tmp_path) in failed.value.evalue
    assert "robosteer reproduce" in failed.value.evalue
    assert "\n" not in failed.value.evalue
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "display_data" for output in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_executed_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    stored = path.read_text()
    assert len(stored) < 500_000
    assert not any(place in stored for place in (str(Path.home()), os.fspath(ROOT), "/tmp/"))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    if not outputs:  # allowed only as long as its data are not recorded
        with pytest.raises(CellExecutionError, match="robosteer reproduce"):
            execute(notebook)
        return
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    figures = [
        output.data["image/svg+xml"] for output in outputs if "image/svg+xml" in output.get("data", {})
    ]
    assert figures
    assert all(len(figure) < 150_000 for figure in figures)
