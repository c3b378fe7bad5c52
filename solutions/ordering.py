"""Putting the cells of a submission in order before they are graded."""
import ast
import copy
import re

import nbformat
from texts import composed


def alike(source: str, other: str) -> bool:
    """Whether two sources differ in nothing but what editors change: spaces, layout, quotes."""
    if re.sub(r"\s", "", composed(source)) == re.sub(r"\s", "", composed(other)):
        return True
    try:
        tree = ast.parse(source)  # an empty one says nothing: all comments would be alike
        return bool(tree.body) and ast.dump(tree) == ast.dump(ast.parse(other))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def in_order(submitted, source, hand_out):
    """The submission with the source's check cells, each of its ids once, and a list of notes on what was done.

    - A check cell is the source's, whatever was made of it.
    - Of an id that occurs several times the last copy counts, as in nbgrader; the others are dropped if they are check
      cells, and still run, as ordinary cells, if they are answers.
    - Cells in another order than the hand-out's, by the ids, are put into that order.
    - A deleted cell is put back below the cell that it follows in the hand-out; an answer is then the blank one.
    - Where an editor has dropped or changed the ids, a check is known by its text, an answer by the function or class that
      it defines, else by its place.
    """
    originals = {cell.metadata.nbgrader.grade_id: cell for cell in source.cells if "nbgrader" in cell.metadata}
    blanks = {cell.metadata.nbgrader.grade_id: cell for cell in hand_out.cells if "nbgrader" in cell.metadata}
    notebook, notes, changed, restored = copy.deepcopy(submitted), [], [], []
    known = recognised(notebook.cells, originals, blanks)
    if (ordered := as_given(notebook.cells, hand_out.cells, originals)) is not None:
        notebook.cells = ordered
        notes.append("the cells stood in another order than in the hand-out and were put back")
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
            if not any(alike(cell.source, other.source) for other in (blanks[name], kept)):
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
        place = place_after(hand_out.cells[:number], cells, originals)
        nameless = without_id(number, place, cells, hand_out.cells, originals)
        if not kept.metadata.nbgrader.locked:
            kept.source = cell.source if nameless is None else cells[nameless].source
        if nameless is None:
            cells.insert(place, kept)
        else:
            cells[nameless] = kept
        (restored if nameless is None else known).append(name)
    if changed:
        notes.append(f"check cells were changed and put back: {', '.join(changed)}")
    if restored:
        notes.append(f"deleted cells were put back: {', '.join(restored)}")
    if known:
        notes.append("an editor dropped nbgrader's ids, and these cells were known by their text, by what they define, or "
                     f"by their place: {', '.join(known)}")
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    notebook.cells, notebook.metadata = cells, copy.deepcopy(source.metadata)
    return notebook, notes


def recognised(cells: list, originals: dict, blanks: dict) -> list[str]:
    """Give ids back to cells that have lost them, in place, by their texts and by what they define; the ids."""
    missing = [name for name in originals if name not in {grade_id(cell, originals) for cell in cells}]
    wanted = {name: defined(originals[name].source) for name in missing if not originals[name].metadata.nbgrader.locked}
    found = []
    for cell in cells:
        if cell.cell_type != "code" or grade_id(cell, originals):
            continue
        names = defined(cell.source)
        for name in missing:
            locked = name not in wanted
            if name not in found and alike(cell.source, blanks[name].source) if locked else names & wanted[name]:
                cell.metadata["nbgrader"] = nbformat.from_dict({"grade_id": name})
                found.append(name)
                break
    return list(dict.fromkeys(found))


def defined(source: str) -> set[str]:
    """The functions and classes that a cell defines; none if it is no Python."""
    try:
        lines = ast.parse("\n".join("pass" if line.startswith(("%", "!")) else line for line in source.split("\n")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.name for node in lines.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def grade_id(cell, originals) -> str:
    """The cell's grade_id if the source has it, else ""."""
    found = cell.metadata.get("nbgrader", {})
    name = found.get("grade_id") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name in originals else ""


def as_given(cells: list, given: list, originals) -> list | None:
    """The cells in the hand-out's order, the learner's own ones behind those that they follow; None if they are in it."""
    ids = [grade_id(cell, originals) for cell in given]
    texts = [cell.source.strip() for cell in given]
    found, last = [], -1
    for cell in cells:
        name, text = grade_id(cell, originals), cell.source.strip()
        known = ids.index(name) if name and name in ids else texts.index(text) if text and text in texts else None
        last = last if known is None else known
        found.append((last, bool(name)))
    graded = list(dict.fromkeys(place for place, named in found if named))
    if graded == sorted(graded):
        return None
    return [cells[number] for number in sorted(range(len(cells)), key=lambda number: found[number][0])]


def place_after(above: list, cells: list, originals) -> int:
    """Where in `cells` the last of the cells `above`, of the hand-out, that is still there has its end."""
    for cell in reversed(above):
        name = grade_id(cell, originals)
        for number in range(len(cells) - 1, -1, -1):
            other = grade_id(cells[number], originals)
            if name == other and (name or cell.source.strip() == cells[number].source.strip()):
                return number + 1
    return 0


def without_id(number: int, place: int, cells: list, given: list, originals) -> int | None:
    """Where in `cells`, from `place` on, the hand-out's answer `given[number]` is without its id; None if nowhere.

    It stands above its check, or, a written one, in its place.
    """
    cell, below = given[number], given[number + 1:number + 2]
    if originals[grade_id(cell, originals)].metadata.nbgrader.locked:
        return None
    found = place
    if cell.cell_type == "code" and below:
        check = grade_id(below[0], originals)
        found = next((at - 1 for at in range(place + 1, len(cells)) if grade_id(cells[at], originals) == check), place)
    texts = [one.source for one in given if not grade_id(one, originals)]
    if found == len(cells) or cells[found].cell_type != cell.cell_type or grade_id(cells[found], originals):
        return None
    return None if any(alike(cells[found].source, text) for text in texts) else found
