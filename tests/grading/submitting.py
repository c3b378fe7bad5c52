"""Named submissions: `<assignment>/<name>.toml`, a few edits of the solution or of the blank hand-out, and what the grader
must find. The format stands in solutions/README.md.
"""
import copy
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.append(str(ROOT / "solutions"))
SPECS = sorted(HERE.glob("*/*.toml"))
KEYS = {"about", "says", "start", "edits", "scores", "notes"}


@dataclass(frozen=True)
class Named:
    """A named submission. says: sentences of its feedback page. scores: of the cells that do not have full marks; None: no
    cell has any."""
    about: str
    says: list
    start: str
    edits: list
    scores: dict | None
    notes: list


def named(path: Path) -> Named:
    """Read one; ValueError for keys that are not in the format."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    if unknown := set(found) - KEYS:
        raise ValueError(f"{path.name} has {', '.join(sorted(unknown))}; only {', '.join(sorted(KEYS))} were expected.")
    scores = found.get("scores", {})
    if "all" in scores and scores != {"all": 0}:
        raise ValueError(f"{path.name}: 'all' stands alone and is 0.")
    if found.get("start", "solution") not in ("solution", "blank"):
        raise ValueError(f"{path.name} starts from {found['start']!r}, where solution or blank was expected.")
    says = found.get("says", [])
    return Named(found["about"], says if isinstance(says, list) else [says], found.get("start", "solution"),
                 found.get("edits", []), None if "all" in scores else scores, found.get("notes", []))


def patched(submission: Named, solution, hand_out):
    """The submitted notebook. Raises ValueError for an edit that does not fit."""
    notebook = copy.deepcopy(solution if submission.start == "solution" else hand_out)
    for edit in submission.edits:
        places = [place for place, cell in enumerate(notebook.cells)
                  if cell.metadata.get("nbgrader", {}).get("grade_id") == edit["cell"]]
        if not places:
            raise ValueError(f"there is no cell {edit['cell']!r} to edit.")
        cell = notebook.cells[places[0]]
        kind = set(edit) - {"cell"}
        if kind == {"old", "new"}:
            if cell.source.count(edit["old"]) != 1:
                times = cell.source.count(edit["old"])
                raise ValueError(f"{edit['old']!r} occurs {times} times in {edit['cell']!r}, not once.")
            cell.source = cell.source.replace(edit["old"], edit["new"])
        elif kind == {"source"}:
            cell.source = edit["source"].strip("\n")
        elif kind == {"delete"}:
            del notebook.cells[places[0]]
        elif kind == {"duplicate"}:
            notebook.cells.insert(places[-1] + 1, copy.deepcopy(cell))
        else:
            raise ValueError(f"an edit of {edit['cell']!r} has {', '.join(sorted(kind)) or 'nothing'}, where old and new, "
                             "source, delete or duplicate was expected.")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"submitted-{number}"
    return notebook


def full_marks(solution) -> dict[str, float]:
    """{grade_id: points} of the autograded cells."""
    about = [cell.metadata.nbgrader for cell in solution.cells if "nbgrader" in cell.metadata]
    return {one.grade_id: float(one.points) for one in about if one.grade and not one.solution}


def expected(submission: Named, solution) -> dict[str, float]:
    """{grade_id: score} of the autograded cells; ValueError for a score of a cell that there is not."""
    marks = full_marks(solution)
    if submission.scores is None:
        return dict.fromkeys(marks, 0.0)
    if unknown := set(submission.scores) - set(marks):
        raise ValueError(f"scores for {', '.join(sorted(unknown))}, which are no autograded cells.")
    return marks | submission.scores


def write(notebook, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
