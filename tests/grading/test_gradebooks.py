"""Tables: grades.csv, points by hand, and the files for Canvas and Moodle, on small files with these platforms' columns."""
import csv
import io

import pytest
import submitting  # noqa: F401 (puts solutions/ on the path)

import gradebooks  # isort: skip
from grading import Result  # isort: skip

CANVAS = '''\
Student,ID,SIS User ID,SIS Login ID,Section,Essay (17),1 Zero Shot (4711),3_adapter (4712),Current Score,Final Score
    Manual Posting,,,,,,Manual Posting,,,
    Points Possible,,,,,10.00,100.00,100.00,(read only),(read only)
"Lovelace, Ada",101,S-1,ada,CS 1,9.00,,,90,90
"Turing, Alan",102,S-2,alan@uni.example,CS 1,,,7.00,,
'''
WORKSHEET = '''\
\ufeffIdentifier,Full name,Email address,Status,Grade,Maximum grade,Grade can be changed,Last modified (submission),\
Last modified (grade),Feedback comments
Participant 11,Ada Lovelace,ada@uni.example,Submitted for grading,,50.00,Yes,"Monday, 3 March 2025, 9:00 AM",-,
Participant 12,Alan Turing,alan@uni.example,No submission,3.00,50.00,No,-,-,
Participant 13,Grace Hopper,grace@uni.example,Submitted for grading,4.00,50.00,Yes,-,-,well done
'''
EXPORT = '''\
First name;Last name;ID number;Institution;Department;Email address;Assignment: 1_zero_shot (Real);Course total (Real);\
Last downloaded from this course
Ada;Lovelace;S-1;;;ada@uni.example;-;-;1741000000
Alan;Turing;S-2;;;alan@uni.example;-;-;1741000000
'''


def result(student, assignment="1_zero_shot", waiting=False, **scores):
    found = Result(student, assignment, scores=scores or {"a-visible": 30.0, "a-hidden": 20.5},
                   points={"a-visible": 40.0, "a-hidden": 60.0})
    if waiting:
        found.points["a-hidden"], found.points["why"], found.waiting = 50.0, 10.0, {"why": "because,\n\"so\""}
    return found


def table(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def roster(tmp_path, text: str):
    path = tmp_path / "roster.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_for_each_submission_and_a_column_for_each_cell():
    noted = result("zoe", "3_adapter", **{"b-visible": 1.0})
    noted.points, noted.notes = {"b-visible": 100.0}, ["one thing", "another"]
    found = table(gradebooks.as_csv(gradebooks.rows([noted, result("ada")])))
    assert ",".join(found[0]) == "student,assignment,a-visible,a-hidden,b-visible,total,max,waiting,note"
    assert list(found[0].values()) == ["ada", "1_zero_shot", "30", "20.5", "", "50.5", "100", "0", ""]
    assert list(found[1].values()) == ["zoe", "3_adapter", "", "", "1", "1", "100", "0", "one thing; another"]


def test_points_by_hand_go_round_through_a_file(tmp_path):
    results = [result("ada", waiting=True), result("ben", waiting=True)]
    waiting = gradebooks.rows(results)
    assert [(row["total"], row["waiting"], row["why"]) for row in waiting] == [(50.5, 10.0, ""), (50.5, 10.0, "")]
    assert "'why' waits for a hand" in waiting[0]["note"]

    path = roster(tmp_path, gradebooks.as_csv(gradebooks.by_hand(results, {})))
    rows = table(path.read_text(encoding="utf-8"))
    assert rows[0] == {"student": "ada", "assignment": "1_zero_shot", "cell": "why", "max": "10", "points": "",
                       "answer": 'because,\n"so"'}
    path = roster(tmp_path, gradebooks.as_csv([rows[0] | {"points": "7,5"}, rows[1]]))
    points = gradebooks.hand_points(path)
    assert points == {("ada", "1_zero_shot", "why"): 7.5}
    found = gradebooks.rows(results, points)
    assert [(row["total"], row["waiting"], row["why"]) for row in found] == [(58.0, 0.0, 7.5), (50.5, 10.0, "")]
    assert gradebooks.by_hand(results, points)[0]["points"] == 7.5


@pytest.mark.parametrize("points, fragment", [({("ada", "1_zero_shot", "why"): 11.0}, "0 to 10 were expected"),
                                              ({("ada", "1_zero_shot", "wy"): 1.0}, "no answer of that name waits")])
def test_points_by_hand_that_fit_nothing_are_refused(points, fragment):
    with pytest.raises(ValueError, match=fragment):
        gradebooks.rows([result("ada", waiting=True)], points)


@pytest.mark.parametrize("text, fragment", [("student,assignment,cell\na,b,c\n", "no column 'points'"), ("", "is empty"),
                                            ("student,assignment,cell,points\na,b,c,many\n", "row 2"),
                                            ("student,assignment,cell,points\na,b,c,1\na,b,c,2\n", "twice")])
def test_a_file_of_points_that_cannot_be_read_is_refused(tmp_path, text, fragment):
    with pytest.raises(ValueError, match=fragment):
        gradebooks.hand_points(roster(tmp_path, text))


def test_canvas_gets_its_own_columns_filled_in(tmp_path):
    grades = gradebooks.rows([result("ada"), result("ALAN"), result("ada", "3_adapter", **{"a-visible": 40.0})])
    text, remarks = gradebooks.canvas(roster(tmp_path, CANVAS), grades)
    found = table(text)
    assert ",".join(found[0]) == "Student,ID,SIS User ID,SIS Login ID,Section,1 Zero Shot (4711),3_adapter (4712)"
    assert found[1]["Student"] == "    Points Possible" and found[1]["1 Zero Shot (4711)"] == "100.00"
    assert found[0]["1 Zero Shot (4711)"] == "Manual Posting"
    assert [list(row.values())[-2:] for row in found[2:]] == [["50.50", "40.00"], ["50.50", "7.00"]]
    assert found[2]["Student"] == "Lovelace, Ada" and not remarks


def test_canvas_is_told_of_an_assignment_it_lacks(tmp_path):
    text, remarks = gradebooks.canvas(roster(tmp_path, CANVAS), gradebooks.rows([result("S-1", "6_prompts")]))
    found = table(text)
    assert found[1]["6_prompts"] == "100" and found[2]["6_prompts"] == "50.50" and found[3]["6_prompts"] == ""
    assert len(remarks) == 1 and "will ask whether to make it" in remarks[0]


def test_whom_canvas_does_not_know_and_what_waits_is_left_out_and_said(tmp_path):
    grades = gradebooks.rows([result("eve"), result("ada", waiting=True)])
    text, remarks = gradebooks.canvas(roster(tmp_path, CANVAS), grades)
    assert [row["1 Zero Shot (4711)"] for row in table(text)[2:]] == ["", ""]
    assert len(remarks) == 2 and "waits for a hand" in remarks[0] and "eve was left out" in remarks[1]


def test_a_name_that_two_people_bear_is_not_guessed(tmp_path):
    text = CANVAS + '"Other, Ada",103,S-3,ada@uni.example,CS 1,,,,,\n'
    found, remarks = gradebooks.canvas(roster(tmp_path, text), gradebooks.rows([result("ada")]))
    assert [row["1 Zero Shot (4711)"] for row in table(found)[2:]] == ["", "", ""] and "2 people" in remarks[0]


def test_moodles_worksheet_is_scaled_to_its_maximum_and_locked_grades_stay(tmp_path):
    grades = gradebooks.rows([result("ada"), result("alan"), result("grace@uni.example")])
    text, remarks = gradebooks.moodle(roster(tmp_path, WORKSHEET), grades)
    found = table(text)
    assert list(found[0]) == WORKSHEET.lstrip("\ufeff").split("\n")[0].split(",")
    assert [row["Grade"] for row in found] == ["25.25", "3.00", "25.25"]
    assert found[0]["Last modified (submission)"] == "Monday, 3 March 2025, 9:00 AM"
    assert len(remarks) == 2 and "cannot be changed" in remarks[0] and "alan was left out" in remarks[1]


def test_moodles_worksheet_is_of_one_assignment(tmp_path):
    with pytest.raises(ValueError, match="say --assignment"):
        gradebooks.moodle(roster(tmp_path, WORKSHEET), gradebooks.rows([result("ada"), result("ada", "3_adapter")]))


def test_moodles_grade_export_has_a_column_for_each_assignment(tmp_path):
    text, remarks = gradebooks.moodle(roster(tmp_path, EXPORT), gradebooks.rows([result("ada"), result("S-2", "3_adapter")]))
    found = table(text)
    assert [row["Assignment: 1_zero_shot (Real)"] for row in found] == ["50.50", "-"]
    assert remarks == ["the Moodle file has no column for 3_adapter: S-2 was left out."]


@pytest.mark.parametrize("fill", [gradebooks.canvas, gradebooks.moodle])
def test_another_file_is_refused(tmp_path, fill):
    with pytest.raises(ValueError, match="expected"):
        fill(roster(tmp_path, "name,mark\nada,1\n"), gradebooks.rows([result("ada")]))
