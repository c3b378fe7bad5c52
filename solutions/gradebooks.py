"""Results as tables: grades.csv, by_hand.csv, and the files that Canvas and Moodle import.

Both are made by filling in a file that the platform itself exported, so that its own columns decide who is who. What
the platforms read stands in their sources: Canvas, `lib/gradebook_importer.rb` of instructure/canvas-lms; Moodle,
`mod/assign/feedback/offline/importgradeslib.php` of moodle/moodle and https://docs.moodle.org/311/en/Grade_import.
"""
import csv
import io
import re
from pathlib import Path

FIRST, LAST = ("student", "assignment"), ("total", "max", "waiting", "note")
CANVAS_PEOPLE = ("Student", "LastName", "FirstName", "ID", "SIS User ID", "SIS Login ID", "Integration ID", "Root Account",
                 "Section")
CANVAS_KEYS = ("SIS Login ID", "SIS User ID", "ID")
MOODLE_KEYS = ("Username", "ID number", "Email address", "Identifier")
BY_HAND = ("student", "assignment", "cell", "max", "points", "answer")


def rows(results: list, points: dict | None = None) -> list[dict]:
    """A row for each result: student, assignment, the score of each cell, total, max, points that wait for a hand, note.

    points: {(student, assignment, cell): points} given by hand. Raises ValueError for points that fit no cell or exceed it.
    """
    points, found = dict(points or {}), []
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
    if points:
        student, assignment, cell = sorted(points)[0]
        raise ValueError(f"points by hand for {cell!r} of {student} in {assignment}, where no answer of that name waits.")
    return found


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
    return [dict(zip(BY_HAND, (result.student, result.assignment, cell, result.points[cell],
                               points.get((result.student, result.assignment, cell), ""), answer)))
            for result in sorted(results, key=lambda result: (result.assignment, result.student))
            for cell, answer in result.waiting.items()]


def hand_points(path: Path) -> dict[tuple[str, str, str], float]:
    """{(student, assignment, cell): points} of a by_hand.csv; rows without points are passed over."""
    columns, table = read(path)
    if missing := [name for name in ("student", "assignment", "cell", "points") if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}; expected {', '.join(BY_HAND)}.")
    found = {}
    for number, row in enumerate(table, 2):
        if not row["points"].strip():
            continue
        key = (row["student"], row["assignment"], row["cell"])
        if key in found:
            raise ValueError(f"{path} gives points twice for {row['cell']!r} of {row['student']}.")
        try:
            found[key] = float(row["points"].replace(",", "."))
        except ValueError:
            raise ValueError(f"row {number} of {path} has {row['points']!r} points, where a number was expected.") from None
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
        return total / most * float(maximum.replace(",", ".")) if maximum else total

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
    people: dict[str, list[dict]] = {}
    for row in table:
        for name in {name.lower() for key in keys if row.get(key) for name in (row[key], row[key].split("@")[0])}:
            people.setdefault(name, []).append(row)
    for grade in grades:
        if grade["assignment"] not in places:
            remarks.append(f"{what} has no column for {grade['assignment']}: {grade['student']} was left out.")
        elif grade["waiting"]:
            remarks.append(f"{grade['student']} was left out: a written answer in {grade['assignment']} waits for a hand.")
        elif len(found := people.get(grade["student"].lower(), [])) != 1:
            why = "nobody" if not found else f"{len(found)} people"
            remarks.append(f"{grade['student']} was left out: {what} has {why} of that name in {', '.join(keys)}.")
        else:
            found[0][places[grade["assignment"]]] = f"{scale(grade['total'], grade['max'], found[0]):.2f}"


def read(path: Path) -> tuple[list[str], list[dict]]:
    """Columns and rows of a CSV file, with commas or semicolons, with or without a byte order mark."""
    text = path.read_text(encoding="utf-8-sig")
    first = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",", restval="")
    table = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    if not reader.fieldnames:
        raise ValueError(f"{path} is empty; expected a CSV file with a line of column names.")
    return list(reader.fieldnames), table


def written(columns: list[str], table: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
