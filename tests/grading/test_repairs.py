"""Submissions as they come: layouts, damaged files, deleted, doubled and changed cells."""
import copy

import nbformat
import pytest
from submitting import named, patched, write
from toy import SOURCE

import assignments  # isort: skip (from solutions/, which submitting puts on the path)
from grading import in_sentences, shows  # isort: skip
from ordering import in_order  # isort: skip
from submissions import found_in, read  # isort: skip

LOCKED = ["blend-visible", "blend-hidden", "double-visible", "double-hidden"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "1_toy.py"
    path.write_text(SOURCE, encoding="utf-8")
    return assignments.source_notebook(path)


@pytest.fixture
def hand_out(source):
    given = copy.deepcopy(source)
    for cell in given.cells:
        if "nbgrader" in cell.metadata and cell.metadata.nbgrader.solution:
            cell.source = "blank"
        elif cell.source.startswith(assignments.HIDDEN_NOTE):
            cell.source = assignments.HIDDEN_NOTE
    return given


def ids(notebook) -> list[str]:
    return [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in notebook.cells]


def cell(notebook, name):
    return notebook.cells[ids(notebook).index(name)]


def answered(hand_out):
    """The hand-out with answers of a student's own, and a cell of their own."""
    notebook = copy.deepcopy(hand_out)
    for name in ("blend", "double", "why"):
        cell(notebook, name).source = f"answer to {name}"
    notebook.cells.insert(4, nbformat.v4.new_code_cell("x = 1"))
    return notebook


def test_a_good_submission_keeps_its_answers_and_gets_the_hidden_tests(source, hand_out):
    submitted = answered(hand_out)
    found, notes = in_order(submitted, source, hand_out)
    assert not notes and ids(found) == ids(submitted)
    for name in LOCKED:
        assert cell(found, name).source == cell(source, name).source
    assert cell(found, "blend").source == "answer to blend" and found.cells[4].source == "x = 1"
    nbformat.validate(found)


def test_deleted_cells_come_back_where_they_were_and_a_deleted_answer_is_blank(source, hand_out):
    submitted = answered(hand_out)
    for name in ("blend-visible", "blend-hidden", "double", "why"):
        submitted.cells.remove(cell(submitted, name))
    found, notes = in_order(submitted, source, hand_out)
    assert [name for name in ids(found) if name] == [name for name in ids(source) if name]
    assert cell(found, "double").source == "blank"
    assert cell(found, "blend-hidden").source == cell(source, "blend-hidden").source
    assert notes == ["deleted cells were put back: blend-visible, blend-hidden, double, why"]


def test_a_check_comes_back_below_the_text_it_followed_if_its_answer_is_gone_too(source, hand_out):
    submitted = answered(hand_out)
    submitted.cells = [one for one in submitted.cells if "nbgrader" not in one.metadata]
    found, _ = in_order(submitted, source, hand_out)
    assert ids(found).index("blend") > [one.source for one in found.cells].index("### Exercise 1 · Blend")


def test_of_a_doubled_answer_the_last_counts_and_the_first_still_runs(source, hand_out):
    submitted = answered(hand_out)
    place = ids(submitted).index("blend")
    submitted.cells.insert(place + 1, copy.deepcopy(submitted.cells[place]))
    submitted.cells[place + 1].source = "second answer"
    found, notes = in_order(submitted, source, hand_out)
    assert cell(found, "blend").source == "second answer" and ids(found).count("blend") == 1
    assert found.cells[place].source == "answer to blend" and "nbgrader" not in found.cells[place].metadata
    assert notes == ["the cell 'blend' occurs 2 times; the last copy counts"]


def test_of_a_doubled_check_one_is_left(source, hand_out):
    submitted = answered(hand_out)
    submitted.cells.append(copy.deepcopy(cell(submitted, "blend-hidden")))
    found, notes = in_order(submitted, source, hand_out)
    assert ids(found).count("blend-hidden") == 1 and len(found.cells) == len(submitted.cells) - 1
    assert notes == ["the cell 'blend-hidden' occurs 2 times; the last copy counts"]


def test_changed_checks_are_put_back_with_all_their_metadata(source, hand_out):
    submitted = answered(hand_out)
    check = cell(submitted, "blend-visible")
    check.source = "pass"
    check.metadata.nbgrader.update(grade=False, locked=False, points=1000)
    check.metadata.tags = ["skip-execution"]
    found, notes = in_order(submitted, source, hand_out)
    assert cell(found, "blend-visible") == cell(source, "blend-visible") | {"id": cell(found, "blend-visible").id}
    assert notes == ["check cells were changed and put back: blend-visible"]


def test_a_tag_or_a_made_up_id_gains_nothing(source, hand_out):
    submitted = answered(hand_out)
    submitted.cells[4].metadata = nbformat.from_dict({
        "tags": ["skip-execution"], "nbgrader": {"grade_id": "mine", "grade": True, "points": 100, "solution": False,
                                                 "locked": False, "schema_version": 3}})
    found, notes = in_order(submitted, source, hand_out)
    assert found.cells[4].metadata == {"tags": []} and not notes


def test_a_moved_set_up_and_an_older_format_are_read(tmp_path, hand_out):
    old = copy.deepcopy(hand_out)
    old.nbformat_minor = 4
    for one in old.cells:
        del one["id"]
    write(old, tmp_path / "old.ipynb")
    assert [one.source for one in read(tmp_path / "old.ipynb").cells] == [one.source for one in hand_out.cells]


@pytest.mark.parametrize("text", ["hello", "{}", "[]", "", '{"cells": 1, "nbformat": 4, "nbformat_minor": 5}'])
def test_what_is_no_notebook_is_said_in_a_line(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="not a notebook") as caught:
        read(path)
    assert "\n" not in str(caught.value)


# layouts ---------------------------------------------------------------------------------------------------------------

def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_nbgraders_layout_and_the_flat_one(tmp_path):
    touch(tmp_path / "ada" / "1_a" / "1_a.ipynb", tmp_path / "ada" / "2_b" / "2_b (1).ipynb",
          tmp_path / "ben" / "1_a" / "1_a.ipynb", tmp_path / "ben" / "1_a" / "scratch.ipynb")
    found, remarks = found_in(tmp_path, ["1_a", "2_b"])
    assert [(one.assignment, one.student, one.path.name) for one in found] == [
        ("1_a", "ada", "1_a.ipynb"), ("1_a", "ben", "1_a.ipynb"), ("2_b", "ada", "2_b (1).ipynb")]
    assert not remarks
    flat = tmp_path / "flat"
    touch(flat / "ada.ipynb", flat / "ben.ipynb")
    assert [one.student for one in found_in(flat, ["1_a", "2_b"], "2_b")[0]] == ["ada", "ben"]


def test_what_is_passed_over_is_said(tmp_path):
    touch(tmp_path / "ada" / "1_a" / "1_a.ipynb", tmp_path / "ben" / "9_z" / "9_z.ipynb", tmp_path / "cyd.ipynb",
          tmp_path / "dan" / "1_a" / "x.ipynb", tmp_path / "dan" / "1_a" / "y.ipynb")
    found, remarks = found_in(tmp_path, ["1_a"])
    assert len(found) == 1 and len(remarks) == 3
    assert "--assignment" in remarks[0] and "9_z" in remarks[1] and "holds 2 notebooks" in remarks[2]


def test_an_empty_folder_and_a_submission_in_two_layouts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no submissions"):
        found_in(tmp_path, ["1_a"])
    touch(tmp_path / "ada" / "1_a" / "1_a.ipynb", tmp_path / "ada.ipynb")
    with pytest.raises(ValueError, match="in both layouts"):
        found_in(tmp_path, ["1_a"], "1_a")


# named submissions and notes ---------------------------------------------------------------------------------------------

def spec(tmp_path, text: str):
    path = tmp_path / "x.toml"
    path.write_text('about = "x"\n' + text, encoding="utf-8")
    return named(path)


def test_edits_in_order(tmp_path, source, hand_out):
    found = patched(spec(tmp_path, """
[[edits]]
cell = "double"
old = "x * 2"
new = "x + x"
[[edits]]
cell = "double"
old = "x + x"
new = "2 * x"
[[edits]]
cell = "blend"
source = '''
whole'''
[[edits]]
cell = "blend-visible"
delete = true
[[edits]]
cell = "why"
duplicate = true
"""), source, hand_out)
    assert "return 2 * x" in cell(found, "double").source and cell(found, "blend").source == "whole"
    assert "blend-visible" not in ids(found) and ids(found).count("why") == 2


@pytest.mark.parametrize("text, fragment", [
    ('[[edits]]\ncell = "nowhere"\ndelete = true', "no cell 'nowhere'"),
    ('[[edits]]\ncell = "double"\nold = "x"\nnew = "y"', "not once"),
    ('[[edits]]\ncell = "double"\nold = "x"', "old and new"),
    ('says_ = "x"', "only about"), ('start = "half"', "solution or blank"), ("[scores]\nall = 0\nx = 1", "stands alone"),
])
def test_a_named_submission_that_does_not_fit_is_refused(tmp_path, source, hand_out, text, fragment):
    with pytest.raises(ValueError, match=fragment):
        patched(spec(tmp_path, text), source, hand_out)


def test_notes_are_gathered_by_what_they_say():
    assert in_sentences([("a", "ended Python itself"), ("b", "ran out of memory"), ("c", "ended Python itself"),
                         ("a", "ended Python itself")]) == [
        "the cells a, c ended Python itself", "the cell b ran out of memory"]


def test_a_hidden_line_is_found_in_any_output_whatever_its_colours():
    line = 'assert -1e-9 < blend(_f, "ü") < 1e-9'
    plain = nbformat.v4.new_output("stream", text=f"1\n{line}\n")
    coloured = nbformat.v4.new_output("error", ename="E", evalue="",
                                      traceback=[line.replace("blend", "\x1b[0;31mblend\x1b[0m")])
    assert shows(plain, {line}) and shows(coloured, {line})
    assert not shows(nbformat.v4.new_output("stream", text="assert blend"), {line})


def test_reversed_cells_are_put_back_into_the_hand_outs_order(source, hand_out):
    submitted = answered(hand_out)
    submitted.cells.reverse()
    found, notes = in_order(submitted, source, hand_out)
    assert [name for name in ids(found) if name] == [name for name in ids(source) if name]
    assert cell(found, "blend").source == "answer to blend" and any("another order" in note for note in notes)
    assert sum(one.source == "x = 1" for one in found.cells) == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gone", ["metadata", "ids of their own", "all"])
def test_reversed_and_renamed_cells_are_known_by_what_they_define(source, hand_out, reverse, gone):
    submitted = answered(hand_out)
    cell(submitted, "blend").source = "%pip install x\nimport math\n\ndef blend(feature, adapted, alpha):\n    return 1"
    cell(submitted, "double").source = "def helper():\n    return 2\n\ndouble = 0\nclass double:\n    x = 1\n\n    y = 2"
    wanted = {name: cell(submitted, name).source for name in ("blend", "double")}
    for number, one in enumerate(submitted.cells):
        if "nbgrader" in one.metadata and one.cell_type == "code":
            one.metadata = nbformat.from_dict({} if gone == "metadata" else {"nbgrader": {"grade_id": f"cell-{number}"}})
        if gone == "all":
            one.metadata, one.id = nbformat.from_dict({}), f"number-{number}"
    if reverse:
        submitted.cells.reverse()
    found, notes = in_order(submitted, source, hand_out)
    assert [name for name in ids(found) if name] == [name for name in ids(source) if name]
    assert {name: cell(found, name).source for name in wanted} == wanted
    assert any("known by" in note for note in notes) and not any("times" in note or "changed" in note for note in notes)
    assert any("another order" in note for note in notes) == reverse
    assert all(cell(found, name).source == cell(source, name).source for name in LOCKED)
    assert sum(one.source == "x = 1" for one in found.cells) == 1


def test_a_helper_of_the_same_name_takes_no_answers_place(source, hand_out):
    submitted = answered(hand_out)
    submitted.cells.append(nbformat.v4.new_code_cell("def blend():\n    return 'tried'"))
    found, notes = in_order(submitted, source, hand_out)
    assert not notes and cell(found, "blend").source == "answer to blend"


def test_a_broken_answer_without_an_id_is_the_cell_above_its_check(source, hand_out):
    submitted = answered(hand_out)
    cell(submitted, "blend").source = "def blend(:"
    submitted.cells.insert(ids(submitted).index("blend"), nbformat.v4.new_code_cell("tried = 1"))
    for one in submitted.cells:
        one.metadata = nbformat.from_dict({})
    found, _ = in_order(submitted, source, hand_out)
    assert cell(found, "blend").source == "def blend(:" and sum(one.source == "tried = 1" for one in found.cells) == 1
