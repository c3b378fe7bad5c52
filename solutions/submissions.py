"""Finding the submissions in a folder, and reading them."""
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from texts import composed, decoded, hidden, lines, shown

MOST_BYTES = 20_000_000
NOTEBOOK = re.compile(r"\.ipynb(\.txt|\.json)?$", re.IGNORECASE)  # some browsers add an ending
COPY = re.compile(r"( ?\(\d+\)|[ _-]+(?:copy|kopie|copie|copia) ?\(?\d*\)?|-\d+)+$", re.IGNORECASE)
# The first match counts in both: what follows is the learner's own name for the file, and may lie.
# Moodle's folder, or its file where folders are off: Ada Lovelace_4711_assignsubmission_file_
MOODLE = re.compile(r"(?P<student>.+?_\d+)_assignsubmission_[a-z]+_?(?P<rest>.*)")
# Canvas's content_zipper.rb: lovelaceada_LATE_101_5551_name, of a person and an upload, or
# anon_x1Y2z_5551_name; its numbers do not begin with 0
CANVAS = re.compile(
    r"(?:(?:LATE_)?(?P<anonymous>anon_[^\W_]+)|(?P<name>.+?)(?:_LATE)?_(?P<person>[1-9]\d*))"
    r"_(?P<upload>[1-9]\d*)_(?P<rest>.+)")


@dataclass(frozen=True, order=True)
class Submission:
    assignment: str
    student: str
    path: Path


@dataclass(frozen=True)
class Candidate:
    """A notebook that may be somebody's submission.

    stem: its own name. place: the folder it came in. upload: Canvas's number, which grows.
    """
    path: Path
    stem: str
    place: Path
    upload: int = 0


def found_in(folder: Path, assignments: list[str], assignment: str | None = None,
             output: Path | None = None) -> tuple[list[Submission], list[str]]:
    """The submissions in a folder, and sentences about what was passed over.

    folder: any mixture of `<student>/<assignment>/<assignment>.ipynb`, as nbgrader's submitted/, of
    `<student>/<assignment>.ipynb`, and of what Canvas and Moodle give for download; if
    `assignment` is given, of `<student>.ipynb`, too. output: of the grader, passed over where it
    lies among the submissions. Raises ValueError if there is no submission.
    """
    found, remarks = candidates(folder, assignments, assignment, output)
    submissions = []
    for (name, student), notebooks in found.items():
        path, remark = chosen(notebooks, name, student)
        submissions += [Submission(name, student, path)] if path else []
        remarks += [remark] if remark else []
    if not submissions:
        raise ValueError(" ".join([
            f"{folder} holds no submissions: expected <student>/<assignment>/<assignment>.ipynb, "
            "or <student>.ipynb together with --assignment, or what Canvas or Moodle give for "
            "download.", *remarks[:20]]))
    return sorted(submissions), remarks


def candidates(folder: Path, assignments: list[str], assignment: str | None,
               output: Path | None) -> tuple[dict[tuple[str, str], list[Candidate]], list[str]]:
    """({(assignment, student): notebooks}, sentences about what is none of anybody's)."""
    found: dict[tuple[str, str], list[Candidate]] = {}
    remarks, loose, others = [], [], {}
    wanted = [assignment] if assignment else assignments
    ours = [os.path.realpath(output / name) for name in (".", "results", "feedback") if output]

    def take(path: Path, student: str, stem: str, place: Path, upload: int = 0, name: str = ""):
        if name := name or assignment or named_in(stem, assignments):
            key = name, composed(student)
            found.setdefault(key, []).append(Candidate(path, stem, place, upload))
        else:
            remarks.append(f"{path} was passed over: its name holds none of "
                           f"{', '.join(assignments)}; say --assignment.")

    for path in entries(folder, assignments, ours):
        student, rest, upload = by_platform(stem_of(path), assignments)
        if NOTEBOOK.search(path.name):
            if student and not hidden(rest):
                take(path, student, rest, path.parent, upload)
            elif assignment and not student:
                login = re.sub(r" ?\(\d+\)$", "", rest)  # "ada (1)" is a copy of "ada"
                take(path, login, assignment + rest[len(login):], path.parent)
            elif not student:
                loose.append(path)
        elif not path.is_dir():
            others |= {student: path} if student else {}
        elif path.name in assignments:
            remarks.append(f"{path} was passed over: it is named as an assignment, not as a "
                           "student; to grade <student>.ipynb files in it, give that folder and "
                           f"--assignment {path.name}.")
        elif student and not any((path / name).is_dir() for name in assignments):
            inside = notebooks_in(path, deep=True)
            others |= {} if inside else {student: path}
            for one in inside:
                take(one, student, stem_of(one), path)
        else:
            places = {place.name: place for place in shown(path)
                      if place.is_dir() and not NOTEBOOK.search(place.name)}
            for name, place in places.items():
                if name in wanted:
                    found.setdefault((name, composed(path.name)), [])
                    for one in notebooks_in(place):
                        take(one, path.name, stem_of(one), place, name=name)
                elif not assignment:
                    remarks.append(f"{place} was passed over; the assignments are "
                                   f"{', '.join(assignments)}.")
            for one in notebooks_in(path):
                if (assignment or named_in(stem_of(one), assignments)) not in places:
                    take(one, path.name, stem_of(one), path)
    if loose:
        remarks.insert(0, f"{len(loose)} notebooks lie in {folder} itself, such as "
                          f"{loose[0].name}; to grade them as <student>.ipynb, say --assignment.")
    known = {student for _, student in found}
    remarks += [f"{student} handed in {path}, which was passed over: there is no notebook."
                for student, path in others.items() if student not in known]
    return found, remarks


def entries(folder: Path, assignments: list[str], ours: list[str]) -> list[Path]:
    """What lies in a folder, or in the one folder in it, if that is an unpacked download.

    Only if it is the one: a learner's folder may hold files named as another learner's download.
    """
    found = [path for path in shown(folder) if os.path.realpath(path) not in ours]
    if len(found) == 1 and not by_platform(stem_of(found[0]), assignments)[0]:
        inside = shown(found[0]) if found[0].is_dir() else []
        if any(by_platform(stem_of(path), assignments)[0] for path in inside):
            return inside
    return found


def stem_of(path: Path) -> str:
    return composed(NOTEBOOK.sub("", path.name))


def notebooks_in(folder: Path, deep: bool = False) -> list[Path]:
    """The notebooks in a folder; deep: and below it, where Moodle keeps uploaded folders."""
    found = []
    for path in shown(folder):
        if NOTEBOOK.search(path.name):
            found.append(path)
        elif deep and path.is_dir() and not path.is_symlink():
            found += notebooks_in(path, deep)
    return found


def by_platform(stem: str, assignments: list[str]) -> tuple[str, str, int]:
    """(student, the file's own name, upload) of a name by Canvas or Moodle, else ("", stem, 0).

    The student is the name with the number that is in the platform's own tables, too:
    "lovelaceada_101", "Ada Lovelace_4711".
    """
    if found := MOODLE.fullmatch(stem):
        return found["student"], found["rest"], 0
    found = CANVAS.fullmatch(stem)
    if not found or original(f"{found['upload']}_{found['rest']}") in map(squeezed, assignments):
        return "", stem, 0  # ada_2024_3_adapter is of an instructor's making
    student = found["anonymous"] or f"{found['name']}_{found['person']}"
    return student, found["rest"], int(found["upload"])


def squeezed(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def original(stem: str) -> str:
    """A file's name, squeezed, without what browsers and systems add to that of a copy."""
    return squeezed(COPY.sub("", re.sub(r"^copy of ", "", stem, flags=re.IGNORECASE)))


def named_in(stem: str, assignments: list[str]) -> str:
    """The one assignment whose name is in a file's name, whatever its spaces; else ""."""
    found = [name for name in assignments if squeezed(name) in squeezed(stem)]
    return found[0] if len(found) == 1 else ""


def chosen(notebooks: list[Candidate], name: str, student: str) -> tuple[Path | None, str]:
    """The notebook that counts, if it is clear which, and a sentence about what was passed over.

    It is Canvas's last upload, else the one of the assignment's exact name, else the last copy.
    """
    places = sorted({str(one.place) for one in notebooks})
    if len(places) > 1:
        return None, (f"{student} for {name} was submitted in both layouts, or twice, and was "
                      f"passed over: keep one of {' and '.join(places)}.")

    def rank(one: Candidate) -> tuple:
        copied = COPY.search(one.stem)
        numbers = map(int, re.findall(r"\d+", copied[0])) if copied else [0]
        return one.upload, one.stem == name, max(numbers, default=1)

    copies = sorted((one for one in notebooks if original(one.stem) == squeezed(name)), key=rank)
    if not copies and len(notebooks) != 1:
        return None, (f"the work of {student} for {name} was passed over: it holds "
                      f"{len(notebooks)} notebooks, none of them called {name}.ipynb.")
    *others, last = copies or notebooks
    names = ", ".join(one.path.name for one in others)
    remark = f"{last.path} counts for {student}; passed over were {names}."
    return last.path, remark if others else ""


def content(path: Path) -> bytes:
    """The bytes of a submission. Raises ValueError, in one sentence, if it is no readable file."""
    try:
        if not path.is_file():  # a pipe would be read for ever
            what = "a folder" if path.is_dir() else \
                "a link to a file that is gone" if path.is_symlink() else "no file"
            raise ValueError(f"the submission is {what}, not a notebook; ask for the file itself.")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"the file is larger than {MOST_BYTES / 1e6:.0f} MB and is not read.")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror}); ask for it again.") from None


def read(path: Path):
    """What the grader needs of a submitted notebook. Raises ValueError, in one sentence, if none.

    Editors add keys, types of cells and metadata of their own, and leave out ids: nothing depends
    on these.
    """
    data = content(path)
    try:
        text = decoded(data)
        book = json.loads(text)
        if isinstance(book, dict) and "worksheets" in book:  # as IPython 2 wrote it
            book = nbformat.reads(text, as_version=4)
        if not isinstance(book, dict) or not isinstance(book.get("cells"), list):
            raise ValueError("it has no list of cells")
        notebook = nbformat.v4.new_notebook(cells=[plain(cell) for cell in book["cells"]])
        nbformat.validate(notebook)
    except Exception as error:  # nbformat has a dozen ways to fail at what is no notebook
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        reason = reason if data.strip() else "it is empty"
        raise ValueError(f"the file is not a notebook: {reason}") from None
    return notebook


def plain(cell: dict):
    """A cell with nothing but its type, its source, and its grade_id, which is its id, too."""
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}.get(
        cell.get("cell_type"), nbformat.v4.new_raw_cell)
    source = cell.get("source") or ""
    source = source if isinstance(source, str) else "".join(source)
    source = source.encode("utf-8", "replace").decode("utf-8")  # half a character cannot be written
    metadata = cell.get("metadata")
    about = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = about.get("grade_id") if isinstance(about, dict) else cell.get("id")
    kept = {"nbgrader": {"grade_id": name}} if isinstance(name, str) else {}
    return make(lines(source), metadata=nbformat.from_dict(kept))
