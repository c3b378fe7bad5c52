"""A small class with the toy assignment, from a folder to grades.csv, by the command that instructors use."""
import copy
import csv
import json

import nbformat
import pytest
import typer
from submitting import ROOT, write
from toy import toy_course
from typer.testing import CliRunner

import grade  # isort: skip (from solutions/, which submitting puts on the path)

BLEND = "def blend(feature, adapted, alpha):\n    return alpha * adapted + (1 - alpha) * feature\n"
FULL = {"blend-visible": "20", "blend-hidden": "30", "double-visible": "10", "double-hidden": "30", "why": ""}
APP = typer.Typer()
APP.command()(grade.main)

# what each writes into the cell "blend", the scores that it loses, and what its note says
CLASS = {
    "ada": (BLEND, {}, ""),
    "peeks": (f"{BLEND}text = open({str(ROOT / 'solutions' / 'README.md')!r}).read()", {}, "tried to read"),
    "writes": ("{write}\n" + BLEND, {"blend-visible": "0", "blend-hidden": "0"}, "tried to write"),
    "hides": ("zip = lambda *lists: []\ncheck = print\ndef blend(*a):\n    return 0.0",
              {"blend-visible": "0", "blend-hidden": "0"}, "a global name of its own for the built-in 'zip'"),
    "patches": ("import torch, builtins\nbuiltins.zip = lambda *a: []\ntorch.Tensor.tolist = lambda self: [0.0]\n" + BLEND,
                {}, "rebound builtins.zip"),
    "sleeps": ("def blend(*a):\n    import time\n    time.sleep(1e6)", {"blend-visible": "0", "blend-hidden": "0"},
               "did not finish"),
    "installs": ("!pip install -q torch\n%pip install torch\nfiles = !ls\n" + BLEND, {},
                 "has a line that starts a program"),
    "draws": ("%%time\n%matplotlib widget\n%load_ext nothing\n%cd /content\n" + BLEND, {}, ""),
    "colab": ("from google.colab import drive\n" + BLEND, {"blend-visible": "0", "blend-hidden": "0"},
              "the cell blend stopped: No module named 'google"),
    "tells": ("import IPython\nIPython.get_ipython().events.register('pre_run_cell', lambda i: print(i.raw_cell))\n" + BLEND,
              {}, ""),
}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course with the toy, and the class's submissions in it."""
    root = tmp_path_factory.mktemp("course")
    notebook = toy_course(root)
    for name, (text, *_) in CLASS.items():
        own = copy.deepcopy(notebook)
        cell = next(cell for cell in own.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == "blend")
        target = root / "submitted" / "ada" / "1_toy" / "1_toy.ipynb"
        cell.source = text.replace("{write}", f"open({str(target)!r}, 'a').write('x')")
        write(own, root / "submitted" / name / "1_toy" / "1_toy.ipynb")
    path = root / "submitted" / "zed" / "1_toy" / "1_toy.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("my dog ate it", encoding="utf-8")
    (root / "submitted" / "yan" / "1_toy").mkdir(parents=True)
    (root / "submitted" / "yan" / "1_toy" / "1_toy.ipynb").symlink_to("/gone/1_toy.ipynb")
    return root


def run(course, *options):
    """Run the command; returns its output and {student: row of grades.csv}."""
    found = CliRunner().invoke(APP, [str(course / "submitted"), "--root", str(course), "--output", str(course / "grades"),
                                     "--seconds", "8", *options])
    assert found.exit_code == 0, found.output
    with open(course / "grades" / "grades.csv", encoding="utf-8", newline="") as file:
        return found.output, {row["student"]: row for row in csv.DictReader(file)}


@pytest.mark.grader
def test_a_class_from_a_folder_to_a_csv_and_once_more(course):
    _, rows = run(course)
    assert set(rows) == {*CLASS, "yan", "zed"}
    for name, (_, lost, note) in CLASS.items():
        assert {cell: rows[name][cell] for cell in FULL} == FULL | lost, name
        assert note in rows[name]["note"], name
        assert rows[name]["waiting"] == "10" and "'why' waits for a hand" in rows[name]["note"]
    assert rows["zed"]["total"] == "0" and rows["zed"]["max"] == "100" and "not a notebook" in rows["zed"]["note"]
    assert rows["yan"]["total"] == "0" and "a link to a file that is gone" in rows["yan"]["note"]

    kept = {path: path.stat().st_mtime_ns for path in (course / "grades").rglob("*") if path.suffix in (".json", ".html")}
    assert len(kept) == 2 * (len(CLASS) + 2)
    hand = course / "hand.csv"
    with open(course / "grades" / "by_hand.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["student"] for row in csv.DictReader(file)] == sorted(CLASS)
    hand.write_text("student;assignment;cell;points\r\nada;1_toy;why;7,0\r\n", encoding="utf-16")
    _, again = run(course, "--hand", str(hand))
    assert again["ada"]["total"] == "97" and again["ada"]["waiting"] == "0" and again["peeks"]["total"] == "90"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was graded twice

    changed = course / "submitted" / "zed" / "1_toy" / "1_toy.ipynb"
    changed.write_bytes((course / "submitted" / "ada" / "1_toy" / "1_toy.ipynb").read_bytes())
    _, third = run(course, "--seed", "7")
    result = json.loads((course / "grades" / "results" / "1_toy" / "zed.json").read_text(encoding="utf-8"))
    assert third["zed"]["total"] == "90" and result["seed"] == 7
    assert {path for path in kept if path.stat().st_mtime_ns != kept[path]} == {
        path for path in kept if path.stem == "zed"}

    for name in CLASS:
        page = (course / "grades" / "feedback" / "1_toy" / f"{name}.html").read_text(encoding="utf-8")
        assert "_alpha, _right" not in page and "hidden: blend" not in page
        assert ("The hidden tests passed." in page) and (("did not pass" in page or "did not finish" in page)
                                                         == ("blend-hidden" in CLASS[name][1]))


def test_a_folder_without_submissions_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "solutions" / "1_toy").mkdir(parents=True)
    write(nbformat.v4.new_notebook(), tmp_path / "solutions" / "1_toy" / "1_toy.ipynb")
    (tmp_path / "submitted").mkdir()
    found = CliRunner().invoke(APP, [str(tmp_path / "submitted"), "--root", str(tmp_path)])
    assert found.exit_code == 1 and "holds no submissions" in found.output
    found = CliRunner().invoke(APP, [str(tmp_path / "submitted"), "--root", str(tmp_path), "--assignment", "2_no"])
    assert found.exit_code == 1 and "there is no assignment '2_no'" in found.output
