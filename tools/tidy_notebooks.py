"""Run notebooks from top to bottom and save their outputs; everything else is removed from the files.

    python tools/tidy_notebooks.py                        # all of notebooks/, each in a fresh kernel
    python tools/tidy_notebooks.py notebooks/03_*.ipynb   # some
    python tools/tidy_notebooks.py --check                # only list those that are not tidy

Saved are outputs with their counts (a checked cell without them checks nothing). Not saved: the state of widgets
(megabytes), their views (dead without a kernel; the still image and the words beside them stay), times, and whatever
an editor left in the metadata.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Remove what a published notebook should not contain; changes and returns it."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "data" in output:
                output.metadata = NotebookNode()
                output.data.pop(WIDGET, None)
        if cell.cell_type == "code":
            cell.outputs = _joined([o for o in cell.outputs if o.get("data", True)])
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream as one: where the kernel cut them is random."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    # the client needs the state of widgets while it runs; `tidy` removes it
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(tidy(notebook), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--check", action="store_true", help="run nothing, change nothing")
    args = parser.parse_args()
    untidy = []
    for path in args.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")):
        if not args.check:
            run(path)
        elif nbformat.writes(tidy(nbformat.read(path, as_version=4))) != path.read_text().rstrip("\n"):
            untidy.append(path.name)
    if untidy:
        sys.exit(f"Not tidy: {', '.join(untidy)}. Run `python tools/tidy_notebooks.py` on them.")


if __name__ == "__main__":
    main()
