"""Finding the submissions in a folder, and putting their cells in order before they are graded."""
import copy
import uuid
from dataclasses import dataclass
from pathlib import Path

import nbformat

MOST_BYTES = 20_000_000


@dataclass(frozen=True, order=True)
class Submission:
    assignment: str
    student: str
    path: Path


def found_in(folder: Path, assignments: list[str], assignment: str | None = None) -> tuple[list[Submission], list[str]]:
    """The submissions in a folder, and sentences about what was passed over.

    folder: `<student>/<assignment>/<assignment>.ipynb`, as nbgrader's submitted/, or, if `assignment` is given,
    `<student>.ipynb`; then the first layout is read for that assignment only. Raises ValueError if there is none.
    """
    submissions, remarks = [], []
    if assignment:
        submissions += [Submission(assignment, path.stem, path) for path in sorted(folder.glob("*.ipynb"))]
    elif loose := sorted(folder.glob("*.ipynb")):
        remarks.append(f"{len(loose)} notebooks lie in {folder} itself, such as {loose[0].name}; to grade them as "
                       "<student>.ipynb, say --assignment.")
    for place in sorted(path for path in folder.glob("*/*") if path.is_dir() and not path.name.startswith(".")):
        if place.name not in ([assignment] if assignment else assignments):
            if not assignment:
                remarks.append(f"{place} was passed over; the assignments are {', '.join(assignments)}.")
            continue
        notebooks = sorted(place.glob("*.ipynb"))
        exact = [path for path in notebooks if path.stem == place.name]
        if exact or len(notebooks) == 1:
            submissions.append(Submission(place.name, place.parent.name, (exact or notebooks)[0]))
        else:
            remarks.append(f"{place} was passed over: it holds {len(notebooks)} notebooks, none of them called "
                           f"{place.name}.ipynb.")
    twice = {(one.student, one.assignment) for one in submissions
             if sum((one.student, one.assignment) == (other.student, other.assignment) for other in submissions) > 1}
    if twice:
        raise ValueError(f"{' for '.join(sorted(twice)[0])} was submitted in both layouts; keep one of the two.")
    if not submissions:
        raise ValueError(f"{folder} holds no submissions: expected <student>/<assignment>/<assignment>.ipynb, or "
                         "<student>.ipynb together with --assignment.")
    return sorted(submissions), remarks


def read(path: Path):
    """A submitted notebook. Raises ValueError, in one sentence, if it is none."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"the file is larger than {MOST_BYTES / 1e6:.0f} MB and is not read.")
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        cells = notebook.cells
        for cell in cells:  # ids may be missing or occur twice; nothing depends on them
            cell.id = uuid.uuid4().hex[:16]
            cell.setdefault("metadata", nbformat.NotebookNode())
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        notebook.nbformat, notebook.nbformat_minor = 4, 5
        nbformat.validate(notebook)
    except Exception as error:  # nbformat has a dozen ways to fail at what is no notebook
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"the file is not a notebook: {reason}") from None
    return notebook


def in_order(submitted, source, hand_out):
    """The submission with the source's check cells, each of its ids once, and a list of notes on what was done.

    - A check cell is the source's, whatever was made of it.
    - Of an id that occurs several times the last copy counts, as in nbgrader; the others are dropped if they are check
      cells, and still run, as ordinary cells, if they are answers.
    - A deleted cell is put back below the cell that it follows in the hand-out; an answer is then the blank one.
    """
    originals = {cell.metadata.nbgrader.grade_id: cell for cell in source.cells if "nbgrader" in cell.metadata}
    blanks = {cell.metadata.nbgrader.grade_id: cell for cell in hand_out.cells if "nbgrader" in cell.metadata}
    notebook, notes, changed, restored = copy.deepcopy(submitted), [], [], []
    places: dict[str, list[int]] = {}
    for number, cell in enumerate(notebook.cells):
        places.setdefault(grade_id(cell, originals), []).append(number)
    twice = {name: numbers for name, numbers in places.items() if name and len(numbers) > 1}
    notes += [f"the cell {name!r} occurs {len(numbers)} times; the last copy counts" for name, numbers in twice.items()]
    extra = {number: name for name, numbers in twice.items() for number in numbers[:-1]}
    cells = []
    for number, cell in enumerate(notebook.cells):
        name = grade_id(cell, originals)
        if not name or number in extra:
            if name and originals[name].metadata.nbgrader.locked:
                continue
            cell.metadata = nbformat.from_dict({"tags": []})  # no tag may keep a cell from running
            cells.append(cell)
            continue
        kept = copy.deepcopy(originals[name])
        if kept.metadata.nbgrader.locked:
            if cell.source.strip() not in (blanks[name].source.strip(), kept.source.strip()):
                changed.append(name)
        else:
            kept.source = cell.source
        cells.append(kept)
    present = {grade_id(cell, originals) for cell in cells}
    for number, cell in enumerate(hand_out.cells):
        name = grade_id(cell, originals)
        if not name or name in present:
            continue
        kept = copy.deepcopy(originals[name])
        if not kept.metadata.nbgrader.locked:
            kept.source = cell.source
        cells.insert(place_after(hand_out.cells[:number], cells, originals), kept)
        restored.append(name)
    if changed:
        notes.append(f"check cells were changed and put back: {', '.join(changed)}")
    if restored:
        notes.append(f"deleted cells were put back: {', '.join(restored)}")
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    notebook.cells, notebook.metadata = cells, copy.deepcopy(source.metadata)
    return notebook, notes


def grade_id(cell, originals) -> str:
    """The cell's grade_id if the source has it, else ""."""
    found = cell.metadata.get("nbgrader", {})
    name = found.get("grade_id") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name in originals else ""


def place_after(above: list, cells: list, originals) -> int:
    """Where in `cells` the last of the cells `above`, of the hand-out, that is still there has its end."""
    for cell in reversed(above):
        name = grade_id(cell, originals)
        for number in range(len(cells) - 1, -1, -1):
            other = grade_id(cells[number], originals)
            if name == other and (name or cell.source.strip() == cells[number].source.strip()):
                return number + 1
    return 0
