"""Files as platforms, browsers, systems, editors and spreadsheets leave them: a right result, or a
sentence that names the file, and nobody's work lost.
"""
import ast
import copy
import json
import os
import tempfile
import unicodedata
from pathlib import Path

import nbformat
import pytest
import submitting  # noqa: F401 (puts solutions/ on the path)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import SOURCE

import assignments  # isort: skip
import gradebooks  # isort: skip
from grade import digest, kept_result  # isort: skip
from grading import Result, changed, states  # isort: skip
from ordering import in_order  # isort: skip
from submissions import found_in, read  # isort: skip
from texts import decoded  # isort: skip
from watching import Limits  # isort: skip

NAME, OTHER = "3_adapter", "1_zero_shot"
quick = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "1_toy.py"
    path.write_text(SOURCE, encoding="utf-8")
    return assignments.source_notebook(path)


def hand_out(source):
    """The toy's hand-out, with ids as the real ones have them."""
    given = copy.deepcopy(source)
    for cell in given.cells:
        if "nbgrader" in cell.metadata and cell.metadata.nbgrader.solution:
            cell.source = f"def {cell.id}(): ..." if cell.cell_type == "code" else "*here*"
        elif cell.source.startswith(assignments.HIDDEN_NOTE):
            cell.source = assignments.HIDDEN_NOTE
    return given


def lay(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}", encoding="utf-8")
    return folder


def who(folder: Path, assignment=NAME, **options) -> dict[str, str]:
    """{student: path of the submission in the folder}, of one assignment."""
    found = found_in(folder, [OTHER, NAME], assignment, **options)[0]
    return {one.student: str(one.path.relative_to(folder)) for one in found
            if one.assignment == NAME}


def ninety(*students: str) -> list[dict]:
    """Rows of grades.csv in which everybody has 90 points."""
    return [{"student": student, "assignment": NAME, "total": 90.0, "max": 100.0, "waiting": 0.0}
            for student in students]


# names that platforms, browsers and systems give --------------------------------------------------

CANVAS = """Student,ID,SIS User ID,SIS Login ID,Section,3_adapter (77)
    Points Possible,,,,,100
"Lovelace, Ada",101,S-1,ada,CS,
"Muñoz, José",102,S-2,jose,CS,
"""
WORKSHEET = """Identifier,Full name,Email address,Grade,Maximum grade,Grade can be changed
Participant 4711,Ada Lovelace,a@uni.example,,"50,00",Yes
Participant 4712,José Muñoz,j@uni.example,,"50,00",Yes
"""
EXPORT = "First name;Last name;ID number;Email address;Assignment: 3_adapter (Real)\n" \
         "Ada;Lovelace;S-1;a@uni.example;-\nJosé;Muñoz;S-2;j@uni.example;-\n"


def totals(folder: Path, fill, roster: str, submitted: Path, assignment=NAME) -> tuple:
    """The platform's table after everybody in `submitted` got 90 points."""
    path = folder / "roster.csv"
    path.write_text(roster, encoding="utf-8")
    return fill(path, ninety(*who(submitted, assignment)))


@pytest.mark.parametrize("assignment", [NAME, None])
@pytest.mark.parametrize("ada", [
    "lovelaceada_101_5551_3_adapter.ipynb", "lovelaceada_LATE_101_5551_3_adapter-2.ipynb",
    "lovelaceada_101_5551_3_adapter (1).ipynb", "lovelaceada_101_5551_3 Adapter final.ipynb",
    "lovelaceada_101_5551_3_adapter.ipynb.txt"])
def test_canvass_downloads_reach_its_gradebook(tmp_path, ada, assignment):
    jose = unicodedata.normalize("NFD", "muñozjosé_102_5552_3_adapter-1.ipynb")
    folder = lay(tmp_path / "down", ada, jose, "lovelaceada_101_5553_._3_adapter.ipynb", "._" + ada)
    assert who(folder, assignment) == {"lovelaceada_101": ada, "muñozjosé_102": jose}
    text, remarks = totals(tmp_path, gradebooks.canvas, CANVAS, folder, assignment)
    assert not remarks and text.count(",90.00\n") == 2


def test_of_several_uploads_the_last_counts_and_the_others_are_named(tmp_path):
    lay(tmp_path, "a_101_5551_3_adapter-1.ipynb", "a_101_999_3_adapter.ipynb",
        "a_101_7000_scratch.ipynb")
    found, remarks = found_in(tmp_path, [NAME], NAME)
    assert [one.path.name for one in found] == ["a_101_5551_3_adapter-1.ipynb"]
    assert len(remarks) == 1 and "a_101_999_3_adapter.ipynb" in remarks[0]


def test_logins_with_numbers_and_anonymous_downloads_keep_their_names(tmp_path):
    lay(tmp_path, "ada_2024_3_adapter.ipynb", "s_2024_01_x.ipynb", "s_2024_02_y.ipynb",
        "anon_x1Y2z_5551_3_adapter.ipynb")
    assert set(who(tmp_path)) == {"ada_2024_3_adapter", "s_2024_01_x", "s_2024_02_y", "anon_x1Y2z"}


@pytest.mark.parametrize("assignment", [NAME, None])
@pytest.mark.parametrize("shape", [
    "{}_assignsubmission_file_/3_adapter.ipynb", "{}_assignsubmission_file/a/3_adapter.ipynb",
    "{}_assignsubmission_file_3_adapter.ipynb", "{}_assignsubmission_file_/3_adapter (2).ipynb",
    "download/{}_assignsubmission_file_/3_adapter.ipynb"])
def test_moodles_downloads_reach_its_worksheet_and_its_export(tmp_path, shape, assignment):
    ada = shape.format("Ada Lovelace_4711")
    jose = shape.format(unicodedata.normalize("NFD", "José Muñoz_4712"))
    folder = lay(tmp_path / "down", ada, jose, "__MACOSX/" + ada,
                 shape.split("{}")[0] + "Ada Lovelace_4711_assignsubmission_onlinetext_/x.html")
    assert who(folder, assignment) == {"Ada Lovelace_4711": ada, "José Muñoz_4712": jose}
    for roster, points in ((WORKSHEET, "45.00"), (EXPORT, "90.00")):
        text, remarks = totals(tmp_path, gradebooks.moodle, roster, folder, assignment)
        assert not remarks and text.count(points) == 2


def test_a_number_that_is_somebody_elses_gives_nobody_points(tmp_path):
    folder = lay(tmp_path / "down", "turingalan_101_5551_3_adapter.ipynb")
    text, remarks = totals(tmp_path, gradebooks.canvas, CANVAS, folder)
    assert "90" not in text and "turingalan_101 was left out" in remarks[0]


def test_a_worksheet_has_blind_and_plain_numbers_and_a_maximum_that_may_be_no_number(tmp_path):
    path = tmp_path / "roster.csv"
    path.write_text(WORKSHEET.replace('"50,00"', "-", 1), encoding="utf-8")
    grades = ninety("Participant_4712", "4711", "Participant_0")
    table, remarks = gradebooks.moodle(path, grades)
    assert table.count("45.00") == 1 and len(remarks) == 2 and "nobody" in remarks[1]
    assert "4711 was left out" in remarks[0] and "'-' is no number" in remarks[0]


def test_a_learners_own_file_name_makes_nobody_else(tmp_path):
    lay(tmp_path, "Ada_4711_assignsubmission_file_José Muñoz_4712_assignsubmission_file_x.ipynb",
        "bo_101_5551_cy_102_9999_3_adapter.ipynb", "dee/cy_102_9999_3_adapter.ipynb")
    assert set(who(tmp_path)) == {"Ada_4711", "bo_101", "dee"}


def test_two_who_have_one_row_do_not_overwrite_each_other(tmp_path):
    folder = lay(tmp_path / "down", "lovelaceada_101_5551_3_adapter.ipynb", "ada.ipynb")
    text, remarks = totals(tmp_path, gradebooks.canvas, CANVAS, folder)
    assert text.count(",90.00\n") == 1 and len(remarks) == 1 and "one row" in remarks[0]


def test_who_handed_in_no_notebook_is_named(tmp_path):
    lay(tmp_path, "a_101_5551_3_adapter.ipynb", "a_101_5552_figure.png", "b_102_5553_3_adapter.py",
        "Cy Dee_4713_assignsubmission_onlinetext_/onlinetext.html")
    found, remarks = found_in(tmp_path, [NAME], NAME)
    assert [one.student for one in found] == ["a_101"] and len(remarks) == 2
    assert "Cy Dee_4713 handed in" in remarks[0] and "b_102 handed in" in remarks[1]


def test_what_systems_hide_is_no_submission_and_not_worth_a_word(tmp_path):
    droppings = (".DS_Store", "Thumbs.db", "desktop.ini", "._ada.ipynb", "__MACOSX/._ada.ipynb",
                 ".ipynb_checkpoints/a.ipynb", "__MACOSX/ben/3_adapter/._3_adapter.ipynb",
                 "ben/.git/x", "ben/3_adapter/._3_adapter.ipynb", "ben/__MACOSX/x.ipynb",
                 "ben/3_adapter/.ipynb_checkpoints/3_adapter-checkpoint.ipynb")
    lay(tmp_path, "ada.ipynb", "ben/3_adapter/my work.ipynb", *droppings)
    found, remarks = found_in(tmp_path, [NAME], NAME)
    assert [one.student for one in found] == ["ada", "ben"] and not remarks


def test_copies_of_a_browser_are_one_student(tmp_path):
    lay(tmp_path, "ada (1).ipynb", "ben.ipynb", "ben (1).ipynb", "cy/3_adapter/3_adapter (1).ipynb",
        "cy/3_adapter/3_adapter (2).ipynb", "dan/Copy of 3_adapter.ipynb", "dan/notes.ipynb")
    found, remarks = found_in(tmp_path, [NAME], NAME)
    assert {one.student: one.path.name for one in found} == {
        "ada": "ada (1).ipynb", "ben": "ben.ipynb", "cy": "3_adapter (2).ipynb",
        "dan": "Copy of 3_adapter.ipynb"}
    assert len(remarks) == 2
    assert "ben (1).ipynb" in remarks[0] and "3_adapter (1).ipynb" in remarks[1]


PATHS = [
    "ada.ipynb", "ada (1).ipynb", "ada/3_adapter/3_adapter.ipynb", "ada/3_adapter/a.ipynb",
    "ada/3_adapter/b.ipynb", "ada/3_adapter.ipynb", "ada/c.ipynb", "ada/d.ipynb/x.txt",
    "bo_101_77_3_adapter.ipynb", "bo_LATE_101_78_x.ipynb", "bo_101_79_y.ipynb",
    "cy_7_assignsubmission_file_/e.ipynb", "cy_7_assignsubmission_file_/f/g.ipynb",
    "cy_7_assignsubmission_file_3_adapter.ipynb"]


@quick
@given(st.lists(st.sampled_from(PATHS), min_size=1, max_size=6, unique=True),
       st.sampled_from([NAME, None]))
def test_nobody_is_lost_without_a_word(paths, assignment):
    with tempfile.TemporaryDirectory() as folder:
        try:
            found, remarks = found_in(lay(Path(folder), *paths), [OTHER, NAME], assignment)
        except ValueError as error:
            found, remarks = [], [str(error)]
    students = [one.student for one in found]
    assert len(students) == len(set(students)) and not any("\n" in remark for remark in remarks)
    for student in {path[:2] for path in paths}:
        assert any(one.startswith(student) for one in students) or student in " ".join(remarks)


# one bad path among many --------------------------------------------------------------------------

@pytest.mark.parametrize("kind, says", [
    ("folder", "is a folder"), ("link", "a link to a file that is gone"),
    ("loop", "a link to a file that is gone"), ("pipe", "no file"), ("empty", "empty")])
def test_a_path_that_is_no_file_costs_its_student_only(tmp_path, kind, says):
    lay(tmp_path, "ben/3_adapter/3_adapter.ipynb", "ada/3_adapter/notes.txt", "source.ipynb")
    bad = tmp_path / "ada" / NAME / f"{NAME}.ipynb"
    {"folder": bad.mkdir, "link": lambda: bad.symlink_to("/gone/x.ipynb"),
     "loop": lambda: bad.symlink_to(bad), "pipe": lambda: os.mkfifo(bad),
     "empty": bad.touch}[kind]()
    found, _ = found_in(tmp_path, [NAME])
    assert [one.student for one in found] == ["ada", "ben"]
    assert len({digest(one, Limits(), tmp_path / "source.ipynb") for one in found}) == 2
    with pytest.raises(ValueError, match=says):
        read(bad)


def test_a_student_who_is_there_twice_stops_nobody(tmp_path):
    lay(tmp_path, "ada.ipynb", "ada/3_adapter/3_adapter.ipynb", "ben.ipynb")
    for form in ("NFC", "NFD"):
        lay(tmp_path / unicodedata.normalize(form, "josé"), "3_adapter/3_adapter.ipynb")
    found, remarks = found_in(tmp_path, [NAME], NAME)
    assert [one.student for one in found] == ["ben"]
    assert len(remarks) == 2 and "ada for" in remarks[0] and "josé for" in remarks[1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"student": 1, "unknown": 2}'])
def test_a_damaged_result_of_an_earlier_run_is_made_anew(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert kept_result(tmp_path / "x.json") is None and kept_result(tmp_path / "none.json") is None


# graded from inside the folder --------------------------------------------------------------------

@pytest.mark.parametrize("output", ["grades", "."])
def test_the_graders_own_files_are_no_submissions_and_nobodys_doing(tmp_path, monkeypatch, output):
    lay(tmp_path, "ada/3_adapter/3_adapter.ipynb", f"{output}/results/3_adapter/ada.json",
        f"{output}/feedback/3_adapter/ada.html")
    monkeypatch.chdir(tmp_path)
    found, remarks = found_in(Path("."), [NAME], output=Path(output))
    assert [str(one.path) for one in found] == ["ada/3_adapter/3_adapter.ipynb"] and not remarks

    ours = [(Path(output) / name).resolve() for name in ("results", "feedback")]
    before = states([tmp_path], ours)
    lay(tmp_path, f"{output}/results/3_adapter/ben.json", f"{output}/feedback/3_adapter/ben.html",
        ".DS_Store", "ada/.ipynb_checkpoints/x.ipynb")
    assert not changed(before, states([tmp_path], ours))
    lay(tmp_path, "ada/3_adapter/planted.ipynb")
    assert len(changed(before, states([tmp_path], ours))) == 1


# notebooks of other editors -----------------------------------------------------------------------

def sources(change):
    """An edit of all cells' sources."""
    def edit(book):
        for cell in book["cells"]:
            cell["source"] = change("".join(cell.get("source") or ""))
    return edit


def cells(**keys):
    """An edit that puts keys into all cells."""
    return lambda book: [cell.update(keys) for cell in book["cells"]]


def metadata(**keys):
    return lambda book: [cell.setdefault("metadata", {}).update(keys) for cell in book["cells"]]


def further(**cell):
    return lambda book: book["cells"].append(cell)


EDITS = {
    "a markdown cell with outputs": further(
        cell_type="markdown", metadata={}, source="x", outputs=[], execution_count=1),
    "a cell of SQL": further(cell_type="sql", source="select 1"),
    "a cell without a source": further(cell_type="code", source=None),
    "keys in cells": cells(outputExpanded=False, outputs=[{"data": 1}], execution_count="3"),
    "odd metadata": metadata(tags="a", collapsed=None, colab={"base_uri": ""}, scrolled=3),
    "keys at the top": lambda book: book.update(widgets={}, deepnote={"v": 1}),
    "widgets": lambda book: book.update(metadata={"widgets": {"state": {}}}),
    "a kernel that is none": lambda book: book.update(metadata={"kernelspec": 1}),
    "no ids": lambda book: [cell.pop("id", None) for cell in book["cells"]],
    "one id for all": cells(id="same"),
    "an older format": lambda book: book.update(nbformat_minor=2),
    "a newer format": lambda book: book.update(nbformat_minor=17),
    "no format": lambda book: [book.pop(key, None) for key in ("nbformat", "metadata")],
    "one string": sources(str),
    "a list of lines": sources(lambda text: text.splitlines(keepends=True)),
    "ends of Windows": sources(lambda text: text.replace("\n", "\r\n")),
    "ends of old Macs": sources(lambda text: text.replace("\r\n", "\n").replace("\n", "\r")),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(list(EDITS)), max_size=4, unique=True),
       st.sampled_from(ENCODINGS), st.booleans())
def test_what_an_editor_writes_costs_no_points_and_makes_no_notes(source, edits, encoding, escaped):
    given = hand_out(source)
    own = copy.deepcopy(given)
    own.cells[4].source = "# mine\nx = 'α'"
    book = json.loads(nbformat.writes(own))
    for name in edits:
        EDITS[name](book)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ipynb"
        path.write_bytes(json.dumps(book, ensure_ascii=escaped).encode(encoding))
        found, notes = in_order(read(path), source, given)
    assert not notes
    texts = [cell.source for cell in found.cells]
    assert own.cells[4].source in texts
    assert all(cell.source in texts for cell in source.cells
               if cell.metadata.get("nbgrader", {}).get("locked"))
    nbformat.validate(found)


def test_a_formatter_is_not_accused_and_a_changed_check_is(source):
    given = hand_out(source)
    own = copy.deepcopy(given)
    check = next(cell for cell in own.cells if cell.get("id") == "double-visible")
    check.source = ast.unparse(ast.parse(check.source))  # other quotes, other lines, no comments
    for cell in own.cells[:-1]:
        cell.source = cell.source.replace("\n", " \t\n") + "\n"
    assert not in_order(own, source, given)[1]
    for text in (check.source.replace("2.0", "3.0"), "# gone"):
        check.source = text
        assert in_order(own, source, given)[1] == [
            "check cells were changed and put back: double-visible"]


@pytest.mark.parametrize("ids", [True, False])
def test_answers_are_known_when_an_editor_drops_nbgraders_metadata(source, ids):
    given = hand_out(source)
    own = json.loads(nbformat.writes(given))
    for cell in own["cells"]:
        about = cell.pop("metadata").get("nbgrader", {})
        if about.get("solution"):
            cell["source"] = f"answer = '{about['grade_id']}'"
        if not ids:
            cell.pop("id")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ipynb"
        path.write_text(json.dumps(own), encoding="utf-8")
        found, notes = in_order(read(path), source, given)
    names = [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in found.cells]
    assert names == [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in source.cells]
    for name in ("blend", "double", "why"):
        assert found.cells[names.index(name)].source == f"answer = '{name}'"
    assert bool(notes) != ids and not any("deleted" in note for note in notes)


KEYS = ["cells", "cell_type", "source", "metadata", "nbgrader", "grade_id", "worksheets"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(KEYS), inner, max_size=5), max_leaves=12)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_notebook_or_a_sentence(source, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ipynb"
        path.write_bytes(data)
        try:
            found, _ = in_order(read(path), source, hand_out(source))
        except ValueError as error:
            assert str(error).startswith("the file is not a notebook") and "\n" not in str(error)
        else:
            nbformat.validate(found)


# tables of spreadsheets ---------------------------------------------------------------------------

def waiting(student: str) -> Result:
    return Result(student, "6_prompts", points={"why": 10.0, "x": 90.0}, scores={"x": 90.0},
                  waiting={"why": "Because,\nα;"})


@quick
@given(st.sampled_from(["ada", "josé", "Zoë Müller_4711", "00417"]),
       st.sampled_from(["NFC", "NFD"]),
       st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n", "\r"]),
       st.sampled_from([*ENCODINGS, "cp1252", "mojibake"]),
       st.sampled_from(["7.5", "7,5", " 7.50 ", "75 %", "75%", "7,5\u00a0", "0,75e1", "7.5000"]),
       st.booleans())
def test_points_by_hand_survive_a_spreadsheet(
        student, form, separator, end, encoding, points, zeros):
    results = [waiting(student), waiting("other")]
    answer = "Because" if encoding == "cp1252" else "Because,\nα;"
    name = student if zeros or encoding == "mojibake" else student.lstrip("0")
    name = unicodedata.normalize("NFC" if encoding in ("cp1252", "mojibake") else form, name)
    if encoding == "mojibake":  # opened as cp1252, saved as UTF-8
        name, encoding = name.encode("utf-8").decode("cp1252"), "utf-8-sig"
    cells = [["student", "assignment", "cell", "max", "points", "answer"],
             [name, "6_prompts", "why", "10", points, answer],
             ["other", "6_prompts", "why", "10", "", answer], [""] * 6]
    text = "\n".join(separator.join(f'"{cell}"' for cell in row) for row in cells)
    if encoding == "cp1252" and end == "\r":
        encoding = "mac_roman"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hand.csv"
        path.write_bytes(text.replace("\n", end).encode(encoding))
        given = gradebooks.hand_points(path)
    assert {row["student"]: row["total"] for row in gradebooks.rows(results, given)} == {
        student: 97.5, "other": 90.0}
    assert [row["points"] for row in gradebooks.by_hand(results, given)] == (
        [7.5, ""] if student < "other" else ["", 7.5])


@pytest.mark.parametrize("points", [
    "seven", "7/10", "1.2.3", "nan", "inf", "07. Mai", "%", "1_0", "--7"])
def test_points_that_are_no_number_are_refused_by_their_row(tmp_path, points):
    path = tmp_path / "hand.csv"
    path.write_text(f"student;assignment;cell;points\na;b;c;{points}\n", encoding="cp1252")
    with pytest.raises(ValueError, match="row 2 of .*hand.csv") as caught:
        gradebooks.hand_points(path)
    assert points in str(caught.value) and str(caught.value).endswith("a number was expected.")


def test_points_that_a_spreadsheet_has_made_ambiguous_are_refused(tmp_path):
    path = tmp_path / "hand.csv"
    path.write_text("student,assignment,cell,points\n417,6_prompts,why,7\n417,6_prompts,why,\n")
    with pytest.raises(ValueError, match="twice"):
        gradebooks.hand_points(path)
    with pytest.raises(ValueError, match="several students"):
        gradebooks.rows([waiting("00417"), waiting("0417")], {("417", "6_prompts", "why"): 7.0})
    with pytest.raises(ValueError, match="by_hand.csv"):
        gradebooks.rows([waiting("4711000000000001")], {("4.711E+15", "6_prompts", "why"): 7.0})


@pytest.mark.parametrize("data, says", [
    (b"PK\x03\x04zip", "workbook"), (b"", "is empty"), (b"\n \n\n", "no column")])
def test_a_file_that_is_no_table_is_named(tmp_path, data, says):
    path = tmp_path / "hand.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says) as caught:
        gradebooks.hand_points(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        gradebooks.hand_points(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("head", ["", "sep=;\n"])
def test_rosters_are_read_in_any_encoding_and_both_forms_of_accents(tmp_path, encoding, head):
    path = tmp_path / "roster.csv"
    text = head + "Student;ID;SIS Login ID;Section;3_adapter\r\nG;1;josé;S;\r\nH;2;417;S;\r\n"
    path.write_bytes(text.encode(encoding))
    grades = ninety(unicodedata.normalize("NFD", "José"), "00417")
    table, remarks = gradebooks.canvas(path, grades)
    assert not remarks and table.split("\n")[1:] == ["G,1,josé,S,90.00", "H,2,417,S,90.00", ""]


@quick
@given(st.binary(max_size=40))
def test_any_bytes_have_a_text(data):
    assert "\r" not in decoded(data)
