"""Results as tables: grades.csv, by_hand.csv, and the files that Canvas and Moodle import.

Both are made by filling in a file that the platform itself exported, so that its own columns decide who is who. What
the platforms read stands in their sources: Canvas, `lib/gradebook_importer.rb` of instructure/canvas-lms; Moodle,
`mod/assign/feedback/offline/importgradeslib.php` of moodle/moodle and https://docs.moodle.org/311/en/Grade_import.
"""
import csv
import io
import math
import re
import unicodedata
from contextlib import suppress
from pathlib import Path

from texts import decoded, folded

FIRST, LAST = ("student", "assignment"), ("total", "max", "waiting", "note")
CANVAS_PEOPLE = ("Student", "LastName", "FirstName", "ID", "SIS User ID", "SIS Login ID", "Integration ID", "Root Account",
                 "Section")
CANVAS_KEYS = ("SIS Login ID", "SIS User ID", "ID")
MOODLE_KEYS = ("Username", "ID number", "Email address", "Identifier")
NUMBERS = ("ID", "Identifier")  # those that Canvas and Moodle put into the names of downloads, too
NAMES = ("Student", "Full name", "FirstName", "LastName", "First name", "Last name", "Surname")
BY_HAND = ("student", "assignment", "cell", "max", "points", "answer")


def rows(results: list, points: dict | None = None) -> list[dict]:
    """A row for each result: student, assignment, the score of each cell, total, max, points that wait for a hand, note.

    points: {(student, assignment, cell): points} given by hand. Raises ValueError for points that fit no cell or exceed it.
    """
    points, found = placed(points or {}, results), []
    for result in sorted(results, key=lambda result: (result.assignment, result.student)):
        scores, notes, waiting = dict(result.scores), list(result.notes), 0.0
        for cell in result.waiting:
            given = points.pop((result.student, result.assignment, cell), None)
            if given is None:
                waiting += result.points[cell]
                notes.append(f"the answer {cell!r} waits for a hand")
                continue
            if not 0 <= given <= result.points[cell]:
                raise ValueError(f"{given:g} points by hand for {cell!r} of {result.student}, where 0 to "
                                 f"{result.points[cell]:g} were expected.")
            scores[cell] = given
        found.append({"student": result.student, "assignment": result.assignment,
                      **{cell: scores.get(cell, "") for cell in result.points}, "total": sum(scores.values()),
                      "max": sum(result.points.values()), "waiting": waiting, "note": "; ".join(notes)})
    return found


def placed(points: dict, results: list) -> dict:
    """The points by hand under their results' own names, which a spreadsheet may have changed.

    Raises ValueError for points that fit no answer or several, and for points given twice.
    """
    found = {}
    for (student, assignment, cell), given in points.items():
        wanted = folded(assignment), folded(cell)
        answers = [(result.student, result.assignment, name)
                   for result in results for name in result.waiting
                   if (folded(result.assignment), folded(name)) == wanted]
        for same in (str, folded, loose):
            if fitting := [answer for answer in answers if same(answer[0]) == same(student)]:
                break
        if len(fitting) != 1 or fitting[0] in found:
            why = "where no answer of that name waits" if not fitting else \
                "which could be of several students" if len(fitting) > 1 else "which are there twice"
            raise ValueError(f"points by hand for {cell!r} of {student} in {assignment}, {why}; "
                             "compare the columns student, assignment and cell with those of the "
                             "grader's own by_hand.csv.")
        found[fitting[0]] = given
    return found


def loose(name: str) -> str:
    """What a spreadsheet leaves of a name: no leading zeros, no quotes, no UTF-8 read as cp1252."""
    with suppress(UnicodeError):
        name = name.encode("cp1252").decode("utf-8")
    name = re.sub(r"^(\d+)[.,]0$", r"\1", folded(name).strip("'=\""))
    return name.lstrip("0") if name.isdigit() else name


def number(text: str, most: str = "") -> float:
    """A number as spreadsheets write it: "7,5", "1 234,50", "75 %" of `most`; else ValueError."""
    plain = re.sub(r"\s", "", text)
    digits = plain.removesuffix("%")
    if "," in digits and "." in digits:  # the first of the two groups thousands
        digits = digits.replace(min(",.", key=digits.rindex), "")
    digits = digits.replace(",", ".")
    fits = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", digits, re.IGNORECASE)
    if not fits or math.isinf(float(digits)):
        raise ValueError(f"{text!r} is no number")
    return float(digits) / 100 * number(most) if plain.endswith("%") else float(digits)


def as_csv(table: list[dict]) -> str:
    """The rows as CSV; columns that only some rows have stand between the first and the last of `rows`."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    middle = [column for column in columns if column not in (*FIRST, *LAST)]
    if all(column in columns for column in (*FIRST, *LAST)):
        columns = [*FIRST, *middle, *LAST]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: f"{value:g}" if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()


def by_hand(results: list, points: dict) -> list[dict]:
    """The answers that a hand has to grade, with the points that it has given so far."""
    points = placed(points, results)
    return [dict(zip(BY_HAND, (result.student, result.assignment, cell, result.points[cell],
                               points.get((result.student, result.assignment, cell), ""), answer)))
            for result in sorted(results, key=lambda result: (result.assignment, result.student))
            for cell, answer in result.waiting.items()]


def hand_points(path: Path) -> dict[tuple[str, str, str], float]:
    """{(student, assignment, cell): points} of a by_hand.csv; rows without points are passed over."""
    columns, table = read(path)
    table = [{folded(column): value for column, value in row.items()} for row in table]
    needed = ("student", "assignment", "cell", "points")
    if missing := [name for name in needed if name not in map(folded, columns)]:
        raise ValueError(f"{path} has no column {missing[0]!r}; expected {', '.join(BY_HAND)}.")
    found = {}
    keys = [(row["student"], row["assignment"], row["cell"]) for row in table]
    for line, (key, row) in enumerate(zip(keys, table), 2):
        if not row["points"].strip():
            continue
        if keys.count(key) > 1:  # also where a spreadsheet made 417 of 00417, and there is a 417
            raise ValueError(f"{path} gives points twice for {key[2]!r} of {key[0]}: it has several "
                             "such rows; keep one.")
        try:
            found[key] = number(row["points"], row.get("max", ""))
        except ValueError:
            raise ValueError(f"row {line} of {path} has {row['points']!r} points, where a number "
                             "was expected.") from None
    return found


def canvas(path: Path, grades: list[dict]) -> tuple[str, list[str]]:
    """An exported Canvas gradebook with the totals filled in, for "Import", and sentences about what was left out.

    Keeps the columns that say who is who and those of our assignments. An assignment of Canvas is ours if it bears its
    name, whatever the case, spaces and underscores; one that Canvas does not have gets a column, and Canvas asks.
    """
    columns, table = read(path)
    if "ID" not in columns or "Section" not in columns:
        raise ValueError(f"{path} is no Canvas gradebook: expected the columns Student, ID and Section; export it under "
                         "Grades, Export.")
    people = [column for column in columns if column in CANVAS_PEOPLE]
    places, remarks = columns_of(columns, grades)
    special = [row for row in table if not row["ID"].strip()]  # "Points Possible", "Manual Posting"
    for assignment in sorted({row["assignment"] for row in grades} - set(places)):
        places[assignment] = assignment
        remarks.append(f"Canvas has no assignment called {assignment}; on import it will ask whether to make it.")
        for row in special:
            if "Points Possible" in row[columns[0]]:
                row[assignment] = f"{max(row['max'] for row in grades if row['assignment'] == assignment):g}"
    fill(table, grades, places, CANVAS_KEYS, lambda total, most, row: total, remarks, "the Canvas gradebook")
    return written([*people, *places.values()], table), remarks


def moodle(path: Path, grades: list[dict]) -> tuple[str, list[str]]:
    """A Moodle file with the totals filled in, and sentences about what was left out.

    Either the grading worksheet of one assignment (View all submissions, Download grading worksheet), which has the column
    "Grade", or a grade export (Grades, Export, Plain text file), which has a column for each assignment.
    """
    columns, table = read(path)
    if not any(key in columns for key in MOODLE_KEYS):
        raise ValueError(f"{path} is no file of Moodle's: expected one of the columns {', '.join(MOODLE_KEYS)}.")
    remarks: list[str] = []
    if "Identifier" in columns and "Grade" in columns:
        names = {row["assignment"] for row in grades}
        if len(names) != 1:
            raise ValueError(f"{path} is the worksheet of one assignment, but {len(names)} were graded; say --assignment.")
        places = {names.pop(): "Grade"}
        table_open = [row for row in table if row.get("Grade can be changed", "Yes") == "Yes"]
        if len(table_open) < len(table):
            remarks.append(f"{len(table) - len(table_open)} grades cannot be changed in Moodle and were left as they are.")
    else:
        places, remarks = columns_of(columns, grades)
        table_open = table
        if not places:
            raise ValueError(f"{path} has no column for any of {', '.join(sorted({row['assignment'] for row in grades}))}; "
                             "give Moodle's assignments these names and export again.")

    def scaled(total: float, most: float, row: dict) -> float:
        maximum = next((row[key] for key in row if key.lower() == "maximum grade"), "")
        return total / most * number(maximum) if maximum.strip() else total

    fill(table_open, grades, places, MOODLE_KEYS, scaled, remarks, "the Moodle file")
    return written(columns, table), remarks


def columns_of(columns: list[str], grades: list[dict]) -> tuple[dict[str, str], list[str]]:
    """{assignment: its column}, which may be called "3_adapter (4711)" or "Assignment: 3 Adapter (Real)"."""
    def plain(name: str) -> str:
        name = re.sub(r"\s*\([^()]*\)\s*$", "", name)
        return re.sub(r"[\W_]+", "", re.sub(r"^\s*Assignment:", "", name)).lower()

    places = {}
    for assignment in sorted({row["assignment"] for row in grades}):
        if found := [column for column in columns if plain(column) == plain(assignment)]:
            if len(found) > 1:
                raise ValueError(f"several columns could be {assignment}: {', '.join(found)}; keep one of them.")
            places[assignment] = found[0]
    return places, []


def fill(table: list[dict], grades: list[dict], places: dict[str, str], keys: tuple[str, ...], scale, remarks: list[str],
         what: str) -> None:
    """Put each total into its student's row; what cannot be placed, or still waits for a hand, is said and left out."""
    indexes, taken = [index(table, keys, same) for same in (folded, loose)], {}
    for grade in grades:
        student, assignment = grade["student"], grade["assignment"]
        if assignment not in places:
            remarks.append(f"{what} has no column for {assignment}: {student} was left out.")
            continue
        if grade["waiting"]:
            remarks.append(f"{student} was left out: a written answer in {assignment} waits for a "
                           "hand.")
            continue
        found = indexes[0].get(folded(student)) or indexes[1].get(loose(student)) or \
            by_download(table, student)
        if len(found) != 1:
            why = "nobody" if not found else f"{len(found)} people"
            remarks.append(f"{student} was left out: {what} has {why} of that name in "
                           f"{', '.join(keys)}.")
            continue
        try:
            total = f"{scale(grade['total'], grade['max'], found[0]):.2f}"
        except ValueError as error:
            remarks.append(f"{student} was left out: in {what}, {error} where the maximum grade "
                           "was expected.")
            continue
        other = taken.setdefault((id(found[0]), assignment), student)
        if other == student:
            found[0][places[assignment]] = total
        else:
            remarks.append(f"{student} was left out: {what} has one row for {student} and for "
                           f"{other}, whose total it got.")


def index(table: list[dict], keys: tuple[str, ...], same) -> dict[str, list[dict]]:
    """{name: its rows} by the columns `keys`; an e-mail address also by its part before the @."""
    people: dict[str, list[dict]] = {}
    for row in table:
        names = [name for key in keys for name in (row.get(key, ""), row.get(key, "").split("@")[0])]
        for name in {same(name) for name in names} - {""}:
            people.setdefault(name, []).append(row)
    return people


def by_download(table: list[dict], student: str) -> list[dict]:
    """The rows of a student as downloads call them: "lovelaceada_101", "Ada Lovelace_4711".

    By the number, where the row's name has a word in common with the student's, or one of them has
    no name, so that nobody gets the points of somebody else's number; else by the whole name.
    """
    name, _, digits = student.rpartition("_")
    digits = digits.lstrip("0")
    if not digits.isdigit():
        return []
    found, name = [], bare(name)
    for row in table:
        numbers = [re.sub(r"\D", "", loose(row.get(key, ""))).lstrip("0") for key in NUMBERS]
        words = re.findall(r"\w+", " ".join(row.get(key, "") for key in (*NAMES, "Identifier")))
        known = [bare(word) for word in words if not word.isdigit()] if name else []
        agrees = not known or any(word in name for word in known if len(word) > 1)
        if digits in numbers and agrees:
            found.append(row)
    return found or [row for row in table if name and name in {
        bare(row.get("Student", "")), bare(row.get("Full name", "")),
        bare(row.get("First name", "") + row.get("Last name", row.get("Surname", "")))}]


def bare(name: str) -> str:
    """The letters and digits of a name, without accents and capitals."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKD", name).casefold())


def read(path: Path) -> tuple[list[str], list[dict]]:
    """Columns and rows of a CSV file as any spreadsheet saves it; a sentence if it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror
        raise ValueError(f"{path} cannot be read ({why}); expected a CSV file.") from None
    if data.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise ValueError(f"{path} is a workbook; save the table as CSV (in Excel: CSV UTF-8) and "
                         "give that file.")
    text = decoded(data).lstrip("\n")
    separator = max(",;\t", key=re.sub(r'"[^"]*"', "", text).split("\n")[0].count)
    if text[:4] == "sep=":  # Excel's own first line
        separator, text = text[4], text[5:].lstrip("\n")
    csv.field_size_limit(100_000_000)  # answers may be long
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=separator, restval="")
        table = [{key: value or "" for key, value in row.items() if key is not None}
                 for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}.") from None
    if not reader.fieldnames:
        raise ValueError(f"{path} is empty; expected a CSV file with a line of column names.")
    return list(reader.fieldnames), table


def written(columns: list[str], table: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
