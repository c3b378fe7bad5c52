"""What the builder and the grader share: nbgrader's settings, the source notebook of a percent source, the hand-out of a
source notebook, and what is refused in them.
"""
import importlib.util
import logging
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from sealing import sealed
from sqlalchemy import event
from sqlalchemy.engine import Engine
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")
HIDDEN = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
HIDDEN_NOTE = "# Hidden tests: they stand here when your work is graded."
TOTAL = 100


def module(path: Path):
    """A Python file as a module; "build" is also the name of a package, so it cannot be imported by that."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@event.listens_for(Engine, "connect")
def do_not_wait_for_the_disk(connection, record) -> None:
    """Gradebooks here are scratch; nbgrader commits hundreds of times, and to wait for the disk took most of the time."""
    connection.execute("PRAGMA synchronous=OFF")


NOTEBOOKS = module(ROOT / "notebooks" / "build.py")


def settings(root: Path) -> Config:
    """nbgrader_config.py's settings for a course whose folders are in `root`; nbgrader's own scripts are put on PATH."""
    scripts = str(Path(sys.executable).parent)  # nbgrader runs `alembic` by its bare name
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    config.CourseDirectory.root = str(root)
    config.Application.log_level = logging.ERROR
    return config


def source_notebook(source: Path):
    """The nbgrader source notebook of a percent source: set-up cell, full metadata, deterministic ids, sealed and folded
    checks, no outputs.

    Raises ValueError, in one sentence, for everything that `expanded` and `sealed` refuse.
    """
    notebook = NOTEBOOKS.converted(source, NOTEBOOKS.repository())
    name = source.stem
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)  # jupytext's, of no use here
        if cell.cell_type == "markdown":  # the badge leads to the hand-out
            cell.source = cell.source.replace(f"/main/notebooks/{name}.ipynb", f"/main/exercises/{name}/{name}.ipynb")
    expanded(notebook)
    sealed(notebook)
    return notebook


def expanded(notebook) -> None:
    """Replace the shorthand in the cells' metadata by nbgrader's, in place.

    {"solution": id}                a solution cell; the answer stands between BEGIN and END SOLUTION
    {"visible": id, "points": n}    its visible check, id-visible, locked
    {"hidden": id, "points": n}     its hidden test, id-hidden, locked; the whole cell becomes hidden
    {"written": id, "points": n}    an answer in words, graded by hand

    Raises ValueError for anything else, for an id that occurs twice, for a solution without both checks below it, for
    markers that are missing or where none belong, and for points that do not add up to 100.
    """
    ids, solutions, points = [], [], {}
    for cell in notebook.cells:
        if any(marker in cell.source for marker in HIDDEN):
            raise ValueError(f"the cell that begins {first_line(cell)!r} has a hidden marker; give it the metadata "
                             "\"hidden\" and leave the markers out.")
        shorthand = cell.metadata.pop("nbgrader", None)
        if not shorthand:
            if any(marker in cell.source for marker in SOLUTION):
                raise ValueError(f"the cell that begins {first_line(cell)!r} has a solution's markers, but its metadata "
                                 "does not say so.")
            continue
        kind = next((kind for kind in ("solution", "visible", "hidden", "written") if kind in shorthand), "")
        wanted = {kind} if kind == "solution" else {kind, "points"}
        if not kind or set(shorthand) != wanted or cell.cell_type != ("markdown" if kind == "written" else "code"):
            raise ValueError(f"a {cell.cell_type} cell has the metadata {dict(shorthand)}, which is none of the four kinds "
                             "of cell that solutions/README.md describes.")
        name = shorthand[kind]
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"{name!r} cannot name a cell; use small letters, digits and underscores.")
        grade_id = name if kind in ("solution", "written") else f"{name}-{kind}"
        if grade_id in ids:
            raise ValueError(f"two cells are called {grade_id!r}.")
        if kind in ("visible", "hidden") and name not in solutions:
            raise ValueError(f"the cell {grade_id!r} checks {name!r}, but no solution of that name stands above it.")
        if kind in ("solution", "written"):
            answer(cell.source, grade_id)
        ids.append(grade_id)
        if kind == "solution":
            solutions.append(name)
        else:
            points[grade_id] = shorthand["points"]
            if not isinstance(points[grade_id], int) or points[grade_id] < 1:
                raise ValueError(f"the cell {grade_id!r} has {points[grade_id]!r} points; give a whole number from 1 on.")
        if kind == "hidden":
            cell.source = "\n".join([HIDDEN_NOTE, HIDDEN[0], cell.source, HIDDEN[1]])
        cell.id = grade_id
        cell.metadata["nbgrader"] = nbformat.from_dict({
            "grade": kind != "solution", "grade_id": grade_id, "locked": kind in ("visible", "hidden"), "schema_version": 3,
            "solution": kind in ("solution", "written"), "task": False,
            **({} if kind == "solution" else {"points": shorthand["points"]})})
    for name in solutions:
        for kind in ("visible", "hidden"):
            if f"{name}-{kind}" not in ids:
                raise ValueError(f"the solution {name!r} has no {kind} check.")
    if sum(points.values()) != TOTAL:
        raise ValueError(f"the points add up to {sum(points.values())}, not {TOTAL}.")


def first_line(cell) -> str:
    return cell.source.split("\n", 1)[0][:60]


def answer(source: str, name: str) -> list[str]:
    """The lines between the solution's markers; ValueError unless there is exactly one such region with something in it."""
    lines = source.split("\n")
    places = [[i for i, line in enumerate(lines) if marker in line] for marker in SOLUTION]
    if [len(found) for found in places] != [1, 1] or places[0][0] >= places[1][0]:
        raise ValueError(f"the cell {name!r} needs one '{SOLUTION[0]}' and below it one '{SOLUTION[1]}'.")
    found = [line for line in lines[places[0][0] + 1:places[1][0]] if line.strip()]
    if not found:
        raise ValueError(f"the cell {name!r} has no answer between its markers.")
    return found


def hand_outs(notebooks: dict) -> dict:
    """{assignment: hand-out} of {assignment: source notebook}, made by nbgrader in a scratch course.

    Raises ValueError if nbgrader refuses one, or a hand-out holds an answer or a hidden test.
    """
    from nbgrader.converters.base import NbGraderException
    from nbgrader.converters.generate_assignment import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    with tempfile.TemporaryDirectory() as scratch:  # the gradebook stays there too
        config, found = settings(Path(scratch)), {}
        for name, notebook in notebooks.items():
            folder = Path(scratch) / config.CourseDirectory.source_directory / name
            folder.mkdir(parents=True)
            (folder / f"{name}.ipynb").write_text(text(notebook), encoding="utf-8")
            converter = GenerateAssignment(coursedir=CourseDirectory(config=config, assignment_id=name), config=config)
            converter.log.setLevel(logging.CRITICAL)
            try:
                converter.start()
            except NbGraderException as error:
                raise ValueError(f"{name}: nbgrader refused it: {error}") from None
            path = Path(scratch) / config.CourseDirectory.release_directory / name / f"{name}.ipynb"
            found[name] = nbformat.read(path, as_version=4)
            refuse_answers(name, notebook, found[name])
    return found


def refuse_answers(name: str, source, hand_out) -> None:
    """Raise ValueError if the hand-out holds a marker, a hidden test or the answer to a solution cell."""
    given = {cell.metadata.nbgrader.grade_id: cell.source for cell in hand_out.cells if "nbgrader" in cell.metadata}
    everything = [squeezed(cell.source) for cell in hand_out.cells]
    for marker in (*SOLUTION, *HIDDEN):
        if any(marker in cell.source for cell in hand_out.cells):
            raise ValueError(f"{name}: the hand-out holds '{marker}'.")
    for cell in source.cells:
        if "nbgrader" not in cell.metadata:
            continue
        grade_id = cell.metadata.nbgrader.grade_id
        if cell.metadata.nbgrader.solution:
            lines = answer(cell.source, grade_id)
            if len(lines) > 1 and any(squeezed("\n".join(lines)) in other for other in everything):
                raise ValueError(f"{name}: the hand-out holds the answer to {grade_id!r}.")
            outside = cell.source.replace("\n".join(lines), "")
            kept = [line for line in lines if line in given[grade_id] and line not in outside and len(line.strip()) > 3]
            if kept:
                raise ValueError(f"{name}: the hand-out's cell {grade_id!r} holds a line of the answer: {kept[0].strip()}")
            given_away = [code for code in second_hints(hand_out) if squeezed(code) in squeezed("\n".join(lines))]
            if given_away:
                raise ValueError(f"{name}: a second hint holds a piece of the answer to {grade_id!r}: {given_away[0]}")
        elif cell.source.startswith(HIDDEN_NOTE) and given[grade_id].strip() != HIDDEN_NOTE:
            raise ValueError(f"{name}: the hand-out shows the hidden test {grade_id!r}.")


def second_hints(notebook) -> list[str]:
    """The code in second hints that is more than a name or a call without arguments, and so may be an answer."""
    texts = re.findall(r"<summary>Hint 2</summary>(.*?)</details>", "\n".join(
        cell.source for cell in notebook.cells if cell.cell_type == "markdown"), re.DOTALL)
    found = [one or other for text in texts for one, other in re.findall(r"`([^`]+)`|<code>(.*?)</code>", text, re.DOTALL)]
    return [code for code in found if len(squeezed(code)) > 11 and not re.fullmatch(r"[\w.]+(\(\))?", code.strip())]


def squeezed(source: str) -> str:
    return re.sub(r"\s+", "", source)


def text(notebook) -> str:
    return nbformat.writes(notebook).rstrip() + "\n"


def built(sources: dict[str, Path]) -> dict[str, dict]:
    """{"solutions": {assignment: notebook}, "exercises": {assignment: notebook}}; ValueError names the assignment."""
    notebooks = {}
    for name, source in sources.items():
        try:
            notebooks[name] = source_notebook(source)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return {"solutions": notebooks, "exercises": hand_outs(notebooks)}
