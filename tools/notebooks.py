"""Execute notebooks from top to bottom and store them: `python tools/notebooks.py [NAME ...]`, all by default.

The reproduction's notebooks read the committed results, or those that $ROBOSTEER_RESULTS names; figures go to
$ROBOSTEER_FIGURES too, if that is set. Nothing is written if a cell fails. What depends on the clock is left out,
and so are warnings, which name places of this machine: the same results give the same files.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed notebook; its kernel works in the repository's root."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    for at, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{at}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def main() -> int:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(f"{path.name} is left as it was: {error.ename}: {error.evalue}", file=sys.stderr)
            return 2
        temporary = path.with_suffix(".new")
        nbformat.write(notebook, temporary)
        temporary.rename(path)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
