"""Notebooks from their sources: `notebooks/src/NN_name.py` (jupytext percent) → `notebooks/NN_name.ipynb`, executed.

    python notebooks/build.py                      # all of them, a few minutes
    python notebooks/build.py 01_zero_shot_clip    # one
    python notebooks/build.py --check              # do the notebooks match their sources? executes nothing
    python notebooks/build.py --colab _colab       # a folder for Colab: the package's wheel and the notebooks, as they are

The sources are what people edit; the notebooks are written by this file alone. It puts the set-up cell (`setup_cell.py`),
and a Colab badge if `[project.urls]` of pyproject.toml names a GitHub repository, where the source's cell is tagged "setup".
"""
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

HERE = Path(__file__).parent
SETUP = HERE / "setup_cell.py"
MARKER = "# set-up: filled in by notebooks/build.py"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}  # nothing of the machine or its versions
WIDGET = "application/vnd.jupyter.widget-view+json"
STATIC = "run this cell to interact"  # a stored widget has no kernel behind it
MOST_BYTES, MOST_SECONDS = 1_500_000, 60


def repository() -> str:
    """The GitHub address in `[project.urls]` of pyproject.toml, its only place; "" if there is none."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next((url.rstrip("/") for url in project.get("urls", {}).values() if url.startswith("https://github.com/")), "")


def setup_cells(name: str, address: str) -> list:
    """What stands in the place of the marker: the badge, if there is an address for it, and the set-up cell, folded."""
    code = SETUP.read_text(encoding="utf-8").strip().replace('REPOSITORY = ""', f'REPOSITORY = "{address}"')
    code += "\n\n%matplotlib inline"  # pyplot would do this; without it a Figure at the end of a cell is not drawn
    cell = new_code_cell(code, metadata={"tags": ["setup"], "cellView": "form", "jupyter": {"source_hidden": True}})
    if not address:
        return [cell]
    colab = "https://colab.research.google.com"
    page = address.replace("https://github.com", f"{colab}/github") + f"/blob/main/notebooks/{name}.ipynb"
    return [new_markdown_cell(f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({page})"), cell]


def converted(source: Path, address: str = ""):
    """The notebook of a percent source, not executed. Raises ValueError without exactly one cell for the set-up."""
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    places = [i for i, cell in enumerate(notebook.cells) if "setup" in cell.metadata.get("tags", [])]
    if len(places) != 1 or notebook.cells[places[0]].source != MARKER:
        raise ValueError(f"{source.name} must have one cell tagged \"setup\", which holds just '{MARKER}'.")
    notebook.cells[places[0]:places[0] + 1] = setup_cells(source.stem, address)
    seen: Counter = Counter()
    for cell in notebook.cells:  # jupytext's ids are random; these change only with the cell itself
        text = f"{source.stem}/{cell.cell_type}/{cell.source}"
        seen[text] += 1
        cell.id = hashlib.sha256(f"{text}/{seen[text]}".encode()).hexdigest()[:16]
    notebook.metadata, notebook.nbformat, notebook.nbformat_minor = nbformat.from_dict(METADATA), 4, 5
    return notebook


def execute(notebook, folder: Path, **variables: str) -> None:
    """Run the notebook's cells in `folder`, outputs in place, with one thread a process and nobody's cache or settings.

    variables: of the environment, over those. Widget state is kept while it runs, since nbclient without it stops at a
    figure drawn into a widget, and dropped by `publishable`. Raises CellExecutionError at the first cell that fails.
    """
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CLIP_ADAPTER_LITE_CACHE": empty, "IPYTHONDIR": empty,
                       **variables}
        NotebookClient(notebook, timeout=900, startup_timeout=300, kernel_name="python3", record_timing=False,
                       extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(folder)}},
                       ).execute(env=environment)


def publishable(notebook) -> None:
    """Make an executed notebook's outputs fit for a static page and for git.

    A widget becomes a line of text, its state and what nbclient wrote of this machine go. Raises ValueError, naming the
    cell, for an error or a warning in an output.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        for place, output in enumerate(cell.get("outputs", [])):
            if output.output_type == "error" or output.get("name") == "stderr":
                text = output.get("evalue") or output.get("text", "")
                raise ValueError(f"cell {number} has {'an error' if 'evalue' in output else 'stderr'} in its output, which "
                                 f"no learner should see: {text.strip()}\n{cell.source}")
            if WIDGET in output.get("data", {}):
                cell.outputs[place] = new_output("display_data", {"text/plain": STATIC, "text/html": f"<i>{STATIC}</i>"})


def write(notebook, path: Path) -> None:
    """Write the notebook under a temporary name and rename it. Raises ValueError if it is too big to be looked at online."""
    text = nbformat.writes(notebook).rstrip() + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"it would be {len(text.encode()) / 1e6:.1f} MB, over {MOST_BYTES / 1e6} MB; draw fewer or smaller "
                         "figures.")
    partial = path.with_suffix(".ipynb.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def difference(wanted, found) -> str:
    """The first thing in which a notebook differs from what its source gives, outputs apart; "" if nothing does."""
    for number, (a, b) in enumerate(zip_longest(wanted.cells, found.cells)):
        if a is None or b is None:
            return f"cell {number}: {'not in the source' if a is None else 'missing'}: {(a or b).source.splitlines()[:1]}"
        for what in ("cell_type", "source", "metadata", "id"):
            if a.get(what) != b.get(what):
                return f"cell {number}: {what} differs; the source has {a.get(what)!r:.200}"
    return "" if wanted.metadata == found.metadata else f"metadata differs; wanted {wanted.metadata}"


def place(source: Path) -> Path:
    """Where the notebook of a source belongs."""
    return source.parent.parent / f"{source.stem}.ipynb"


def drift(source: Path) -> str:
    """How the notebook differs from its source; "" if it does not."""
    path = place(source)
    if not path.exists():
        return "there is no notebook"
    return difference(converted(source, repository()), nbformat.read(path, as_version=4))


def build(source: Path) -> None:
    """Convert, execute, clean and write one notebook; prints how long it ran."""
    notebook = converted(source, repository())
    start = time.perf_counter()
    execute(notebook, HERE)
    seconds = time.perf_counter() - start
    publishable(notebook)
    write(notebook, place(source))
    note = f" (over {MOST_SECONDS} s: too long, if the machine was idle)" if seconds > MOST_SECONDS else ""
    print(f"{source.stem}: {seconds:.0f} s{note}", flush=True)


def colab(folder: Path, address: str = "") -> list[Path]:
    """Write the package's wheel and the notebooks, with today's set-up cell, into a folder to upload to Google Drive.

    Only its own kinds of files are replaced. Raises ValueError if the wheel cannot be built or a notebook is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", made,
                               str(HERE.parent)], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"the wheel could not be built: {done.stderr.strip().splitlines()[-1:]}")
        wheel = next(Path(made).glob("*.whl"))
        for old in folder.glob("clip_adapter_lite-*.whl"):
            old.unlink()
        wheel.replace(folder / wheel.name)
    for source in sorted((HERE / "src").glob("[0-9][0-9]_*.py")):
        if not place(source).exists():
            raise ValueError(f"there is no notebook of {source.name}; run `make notebooks`")
        notebook = nbformat.read(place(source), as_version=4)
        for cell in notebook.cells:
            if "setup" in cell.metadata.get("tags", []):
                cell.source = setup_cells(source.stem, address)[-1].source
        write(notebook, folder / f"{source.stem}.ipynb")
    return sorted(folder.iterdir())


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Notebooks, such as 03_the_adapter; all if none.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare the notebooks with their sources.")] = False,
    to_colab: Annotated[Path | None, typer.Option("--colab", help="Write a folder for Colab, and execute nothing.")] = None,
):
    """Make the notebooks from notebooks/src, executed; or, with --check, say which no longer match their sources."""
    if to_colab:
        try:
            found = colab(to_colab, repository())
        except (ValueError, OSError) as error:
            typer.echo(f"{to_colab}: {error}", err=True)
            raise typer.Exit(1) from None
        typer.echo(f"{to_colab}: {len(found)} files. Upload the folder to Google Drive once, and open a notebook there with "
                   "Google Colaboratory.")
        return
    sources = {path.stem: path for path in sorted((HERE / "src").glob("[0-9][0-9]_*.py"))}
    if unknown := set(names or ()) - set(sources):
        raise typer.BadParameter(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(sources)}.")
    failures = {}
    if check and not names:
        failures = {path.stem: "has no source" for path in HERE.glob("*.ipynb") if path.stem not in sources}
    for name in names or sources:
        try:
            if check:
                failures[name] = drift(sources[name])
            else:
                build(sources[name])
        except (ValueError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failures[name] = str(error)
    failures = {name: why for name, why in failures.items() if why}
    for name, why in failures.items():
        typer.echo(f"{name}: {why}", err=True)
    if failures:
        remedy = "edit notebooks/src, not the notebooks, then run `make notebooks`" if check else "not written"
        typer.echo(f"{len(failures)} of {len(names or sources)} notebooks failed: {remedy}.", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
