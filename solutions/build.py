"""The exercises from their sources: `solutions/src/<assignment>.py` (jupytext percent) → an nbgrader source notebook in
`solutions/<assignment>/` and, through nbgrader's generate_assignment, the hand-out in `exercises/<assignment>/`.

    python solutions/build.py              # all of them (`make exercises`)
    python solutions/build.py 3_adapter    # one
    python solutions/build.py --check      # do both notebooks match the source? writes nothing

The sources are what people edit. The shorthand that they write for nbgrader's metadata, and what is refused, stands in
`assignments.expanded`; the README says how to add an assignment.
"""
import sys
from pathlib import Path
from typing import Annotated

import nbformat
import typer

sys.path.append(str(Path(__file__).resolve().parent))

from assignments import NOTEBOOKS, ROOT, built, text  # noqa: E402


def drift(wanted, path: Path) -> str:
    """How the notebook in a file differs from the one wanted; "" if it does not."""
    if not path.exists():
        return "there is no notebook"
    found = path.read_text(encoding="utf-8")
    if found == text(wanted):
        return ""
    return NOTEBOOKS.difference(wanted, nbformat.reads(found, as_version=4)) or "outputs or formatting differ"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Assignments, such as 3_adapter; all if none.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare the notebooks with their sources.")] = False,
    root: Annotated[Path, typer.Option(help="The course's folder, with solutions/ and exercises/ in it.")] = ROOT,
):
    """Make the nbgrader sources and the hand-outs from solutions/src; or, with --check, say which no longer match."""
    sources = {path.stem: path for path in sorted((root / "solutions" / "src").glob("*.py"))}
    if unknown := set(names or ()) - set(sources):
        raise typer.BadParameter(f"no assignment {', '.join(sorted(unknown))}; there are {', '.join(sources) or 'none'}.")
    chosen = {name: sources[name] for name in names or sources}
    failures = []
    try:
        made = built(chosen)
    except ValueError as error:
        typer.echo(f"{error}\nNothing written: mend the source in solutions/src.", err=True)
        raise typer.Exit(1) from None
    if check and not names:
        failures = [f"{path.relative_to(root)}: has no source" for folder in made
                    for path in sorted((root / folder).glob("*/*.ipynb")) if path.stem not in sources]
    for folder, notebooks in made.items():
        for name, notebook in notebooks.items():
            path = root / folder / name / f"{name}.ipynb"
            if check:
                if why := drift(notebook, path):
                    failures.append(f"{path.relative_to(root)}: {why}")
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            NOTEBOOKS.write(notebook, path)
    for failure in failures:
        typer.echo(failure, err=True)
    if failures:
        typer.echo("Edit solutions/src, not the notebooks, then run `make exercises`.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{len(chosen)} {'assignment' if len(chosen) == 1 else 'assignments'} "
               f"{'match their sources' if check else 'written to solutions/ and exercises/'}.")


if __name__ == "__main__":
    typer.run(main)
