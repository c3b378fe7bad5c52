"""What the tests of the notebooks share: where they are, and `notebooks/build.py` as a module."""
import importlib.util
import os
from functools import cache
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("[0-9][0-9]_*.py"))


def module(path: Path):
    """A Python file as a module; `build` is also the name of a package, so it cannot be imported by that."""
    spec = importlib.util.spec_from_file_location(f"notebooks_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


BUILD = module(NOTEBOOKS / "build.py")


@cache
def kept(source: Path):
    """The committed notebook of a source, not to be changed; fails the test if there is none."""
    path = NOTEBOOKS / f"{source.stem}.ipynb"
    assert path.exists(), f"{source.name} has no notebook: run `make notebooks`"
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_checked(cell) -> bool:
    """Whether nbval compares this cell's output."""
    return cell.cell_type == "code" and cell.source.startswith("# NBVAL_CHECK_OUTPUT")


def quiet(folder: Path) -> dict[str, str]:
    """The environment for a notebook: one thread a process, nobody's cache, no way to a model hub."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CLIP_ADAPTER_LITE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
                         "IPYTHONDIR": str(folder / "ipython")}
