"""The builder: what an assignment becomes, and what is refused. The toy assignment stands in toy.py."""
import nbformat
import pytest
import typer
from submitting import ROOT, full_marks
from toy import SOURCE
from typer.testing import CliRunner

import assignments  # isort: skip (from solutions/, which submitting puts on the path)

APP = typer.Typer()
APP.command()(assignments.module(ROOT / "solutions" / "build.py").main)


@pytest.fixture
def course(tmp_path):
    """A folder with the toy as its only assignment; returns its source."""
    path = tmp_path / "solutions" / "src" / "1_toy.py"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE, encoding="utf-8")
    return path


def cells(notebook) -> dict:
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


def test_the_shorthand_becomes_nbgraders_metadata(course):
    from nbgrader.nbgraderformat import MetadataValidator
    notebook = assignments.source_notebook(course)
    nbformat.validate(notebook)
    MetadataValidator().validate_nb(notebook)
    found = cells(notebook)
    assert list(found) == ["blend", "blend-visible", "blend-hidden", "double", "double-visible", "double-hidden", "why"]
    assert full_marks(notebook) == {"blend-visible": 20, "blend-hidden": 30, "double-visible": 10, "double-hidden": 30}
    assert [name for name in found if found[name].metadata.nbgrader.locked] == list(full_marks(notebook))
    assert [name for name in found if found[name].metadata.nbgrader.solution] == ["blend", "double", "why"]
    lines = found["double-hidden"].source.split("\n")
    assert lines[1] == "### BEGIN HIDDEN TESTS" and lines[-1] == "### END HIDDEN TESTS"
    assert lines[2].startswith("for _x in")


def test_two_builds_give_the_same_text(course):
    assert assignments.text(assignments.source_notebook(course)) == assignments.text(assignments.source_notebook(course))


@pytest.mark.parametrize("old, new, fragment", [
    ('"visible": "double", "points": 10', '"visible": "double", "points": 11', "the points add up to 101, not 100"),
    ('{"solution": "double"}', '{"solution": "blend"}', "two cells are called 'blend'"),
    ('nbgrader={"hidden": "double", "points": 30}', "", "has no hidden check"),
    ('nbgrader={"visible": "double", "points": 10}', "", "has no visible check"),
    ('{"visible": "blend", "points": 20}', '{"visible": "blnd", "points": 20}', "no solution of that name"),
    ('{"visible": "blend", "points": 20}', '{"visible": "blend"}', "none of the four kinds"),
    ('{"solution": "blend"}', '{"answer": "blend"}', "none of the four kinds"),
    ('{"solution": "blend"}', '{"solution": "Blend it"}', "cannot name a cell"),
    ('"points": 20', '"points": 0', "whole number"),
    ("    return mixed\n    ### END SOLUTION\n", "    return mixed\n", "needs one"),
    ("    mixed = alpha * adapted + (1 - alpha) * feature\n    return mixed\n", "", "no answer"),
    ("for _x in", "### BEGIN HIDDEN TESTS\nfor _x in", "hidden marker"),
    ("# # Toy", "# # Toy\n# ### BEGIN SOLUTION\n# ### END SOLUTION", "does not say so"),
    ("# set-up: filled in by notebooks/build.py", "import os", "exactly"),
    ("return x * 2", "return x * 3", "'double-visible' of the source does not run: AssertionError: double(2) is 6"),
    ("return x * 2", "return x * factor", "'double-visible' of the source does not run: NameError"),
    ('check("double(2)", double(2.0), 4.0,', 'check(str(2), double(2.0), 4.0,', "whose first argument is no text"),
    ('check("double(2)"', 'for _ in range(2):\n    check("double(2)"', "checks 'double(2)' twice"),
    ('check("double(2)"', 'if False:\n    check("double(2)"', "did not run"),
])
def test_a_source_that_would_go_wrong_is_refused(course, old, new, fragment):
    assert SOURCE.count(old) >= 1
    course.write_text(SOURCE.replace(old, new, 1), encoding="utf-8")
    if fragment == "exactly":
        fragment = "must have one cell tagged"
    with pytest.raises(ValueError) as caught:
        assignments.source_notebook(course)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_visible_checks_are_folded_and_show_no_value(course):
    course.write_text(SOURCE.replace('check("double(2)", double(2.0), 4.0,', """\
right = [4.0,
         5.0]  # the builder's
if True:
    check("ä(3)", [double(3.0)], [6.0], {"half, ä": right[:1], 'in "quotes" \\\\ ä': [9.0]}, tolerance=0.1)
check("double(2)", double(2.0), right[0],"""), encoding="utf-8")
    check = cells(assignments.source_notebook(course))["double-visible"]
    assert check.metadata.jupyter.source_hidden and check.metadata.cellView == "form"
    assert check.metadata.tags == ["hide-input"]
    assert check.source.startswith("# @title Check your answer: double.")
    assert "4.0" not in check.source and "right" not in check.source and "1.41421356" not in check.source
    namespace = {"double": lambda x: 2 * x}
    exec("from clip_adapter_lite.checks import check\n" + check.source, namespace)
    for found, sentence in ((lambda x: 4.0 if x == 3 else 4, "half, ä"), (lambda x: 9.0, r'in "quotes" \\ ä'),
                            (lambda x: 2 * x if x == 3 else 2 ** 0.5, "that is the square root"),
                            (lambda x: 7.3, "that is not right")):
        with pytest.raises(AssertionError, match=sentence):
            exec(check.source, {**namespace, "double": found})
    exec(check.source, {**namespace, "double": lambda x: 6.09 if x == 3 else 4.0})  # within the tolerance, 0.6


def hand_out(notebook):
    """A hand-out without answers, as nbgrader would make it, for the toy."""
    found = nbformat.from_dict(notebook)
    for cell in found.cells:
        if "nbgrader" in cell.metadata and cell.metadata.nbgrader.solution:
            cell.source = cell.source.split("    ### BEGIN")[0] if cell.cell_type == "code" else "here"
        elif cell.source.startswith(assignments.HIDDEN_NOTE):
            cell.source = assignments.HIDDEN_NOTE
    return found


@pytest.mark.parametrize("cell, text, fragment", [
    ("blend", "def blend():\n    return mixed", "holds a line of the answer"),
    ("blend-visible", "mixed = alpha * adapted + (1 - alpha) * feature\nreturn mixed", "holds the answer to 'blend'"),
    ("double-hidden", "for _x in (0.5, -3.0): ...", "shows the hidden test"),
    ("double", "### END SOLUTION", "holds '### END SOLUTION'"),
    ("why", "Because it is blended.", "holds a line of the answer"),
])
def test_a_hand_out_that_shows_an_answer_is_refused(course, cell, text, fragment):
    source = assignments.source_notebook(course)
    given = hand_out(assignments.source_notebook(course))
    assignments.refuse_answers("1_toy", source, given)
    cells(given)[cell].source = text
    with pytest.raises(ValueError, match=fragment):
        assignments.refuse_answers("1_toy", source, given)


@pytest.mark.parametrize("code, refused", [
    ("`alpha * adapted`", True), ("<code>alpha *\n adapted</code>", True), ("`alpha`", False), ("`alpha * other`", False)])
def test_a_second_hint_with_a_piece_of_the_answer_is_refused(course, code, refused):
    source = assignments.source_notebook(course)
    given = hand_out(assignments.source_notebook(course))
    for hint in ("Hint 1", "Hint 2"):
        text = nbformat.v4.new_markdown_cell(f"<details><summary>{hint}</summary>\n\nUse {code}.\n\n</details>")
        given.cells.append(text)
        if refused and hint == "Hint 2":
            with pytest.raises(ValueError, match="a second hint holds a piece of the answer to 'blend'"):
                assignments.refuse_answers("1_toy", source, given)
        else:
            assignments.refuse_answers("1_toy", source, given)


@pytest.mark.slow
def test_exercises_are_written_checked_and_drift_is_named(course, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(APP, [*arguments, "--root", str(tmp_path)])

    assert run().exit_code == 0
    page = tmp_path / "exercises" / "1_toy" / "1_toy.ipynb"
    given = cells(nbformat.read(page, as_version=4))
    assert given["blend"].source.endswith('    raise NotImplementedError("Write your code here in place of this line, '
                                          'run the cell, then run the check below it.")')
    assert '"""Blend two numbers."""' in given["blend"].source
    assert given["double-hidden"].source == assignments.HIDDEN_NOTE
    assert "written here" not in given["why"].source and "Because" not in given["why"].source
    assert not list(tmp_path.rglob("*.db"))
    assert run("--check").exit_code == 0

    page.write_text(page.read_text(encoding="utf-8").replace("# # Toy", "# Toy").replace("Exercise 1", "Exercise 2"),
                    encoding="utf-8")
    found = run("--check")
    assert found.exit_code == 1 and "exercises/1_toy/1_toy.ipynb: cell" in found.output and "source differs" in found.output
    course.rename(course.with_name("2_toy.py"))
    assert "has no source" in run("--check").output


@pytest.mark.slow
def test_the_committed_exercises_match_their_sources():
    found = CliRunner().invoke(APP, ["--check"])
    assert found.exit_code == 0, found.output
