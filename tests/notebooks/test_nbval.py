"""nbval runs every notebook again and compares the marked cells; how many it really compared is asserted.

The count matters: nbval passes on a notebook without outputs or execution counts, since it compares nothing there.
"""
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from course import NOTEBOOKS, SOURCES, code_cells, is_checked, quiet
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook, new_output
from titles import faults

pytestmark = [pytest.mark.slow, pytest.mark.notebook]


def nbval(notebook: Path, folder: Path) -> tuple[dict[int, bool], str]:
    """({number of the code cell: same} of the cells that were compared, nbval's report if anything failed)."""
    compared, here = folder / "compared.json", Path(__file__).parent
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "look.py").write_text("import titles\n")  # a module of its own, apart from a notebook's names
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=900", "-q",
         "--color=no", "-p", "nbval_compared", "-p", "no:cacheprovider", f"--rootdir={NOTEBOOKS.parent}", str(notebook)],
        capture_output=True, text=True, cwd=NOTEBOOKS.parent,
        env=quiet(folder) | {"NBVAL_COMPARED": str(compared), "PYTHONPATH": str(here),
                             "TITLES": str(folder / "titles.txt")})
    found = json.loads(compared.read_text()) if compared.exists() else {}
    return {int(n): same for n, same in found.items()}, done.stdout + done.stderr if done.returncode else ""


def marked(notebook: Path) -> list[int]:
    return [n for n, cell in enumerate(code_cells(nbformat.read(notebook, as_version=4))) if is_checked(cell)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_nbval_runs_the_notebook_and_compares_every_marked_cell(source, tmp_path):
    notebook = NOTEBOOKS / f"{source.stem}.ipynb"
    wanted = marked(notebook)
    compared, report = nbval(notebook, tmp_path)
    assert not report, report
    assert len(wanted) >= 3 and sorted(compared) == wanted and all(compared.values())
    figures = (tmp_path / "titles.txt").read_text(encoding="utf-8").splitlines()
    assert set(figures) == {"fine"}, set(figures)


@pytest.mark.parametrize("titles, wanted", [
    (("one", "two"), []), (("one " * 8, "two"), ["touches 'two'"]),
    (("one", "two " * 30), ["cut off"]), (("", ""), [])])
def test_titles_that_touch_are_found(titles, wanted):
    figure = Figure(figsize=(4, 3))
    FigureCanvasAgg(figure)
    for axis, title in zip(figure.subplots(1, 2), titles):
        axis.set_title(title, loc="left")
    figure.canvas.draw()
    found = " ".join(faults(figure))
    assert bool(found) == bool(wanted) and all(part in found for part in wanted), found


def tiny(folder: Path, output: str, count: int | None = 1) -> Path:
    """A notebook whose second cell, marked, prints 2 and has this output stored."""
    cells = [new_code_cell("x = 1", execution_count=count),
             new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(x + 1)", execution_count=count and 2,
                           outputs=[new_output("stream", text=output)] if output else [])]
    path = folder / "tiny.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_the_count_tells_a_checked_notebook_from_a_changed_and_from_a_stripped_one(tmp_path):
    right = tiny(tmp_path, "2\n")
    assert marked(right) == [1] and nbval(right, tmp_path) == ({1: True}, "")
    compared, report = nbval(tiny(tmp_path, "3\n"), tmp_path)
    assert compared == {1: False} and "Cell outputs differ" in report
    stripped = nbval(tiny(tmp_path, "", count=None), tmp_path)
    assert stripped == ({}, ""), "nbval passes, having compared nothing: the trap that the count is for"
