"""Where bubblewrap cannot be used and the grader is root: submissions as users of their own."""
import csv
import os
import subprocess
import sys

import nbformat
import pytest
from submitting import ROOT, write
from test_class import BLEND, FULL
from toy import toy_course

SCRATCH = {
    "honest": "",
    "kills": """import os, signal
for pid in {os.getppid(), 1, *(int(x) for x in os.listdir('/proc') if x.isdigit())} - {os.getpid()}:
    if pid > 0:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass""",
    "reads": """import ctypes, os
c, seen = ctypes.CDLL(None), []
for place in ('..', '../course', '../course/source', '../..', '../../course-1_toy', '../../course-1_toy/source/1_toy'):
    seen.append(c.open(place.encode(), os.O_RDONLY | os.O_DIRECTORY))
print('OPENED', max(seen), 'USER', os.getuid() >= 61184, 'BACK', c.setuid(0))"""}


@pytest.mark.grader
def test_they_can_neither_end_the_grader_nor_see_its_folders(tmp_path):
    environment = {**os.environ, "GRADER_WALLS": "user"}
    asked = subprocess.run([sys.executable, "-c", "import walls; print(walls.kind())"], cwd=ROOT / "solutions",
                           env=environment, capture_output=True, text=True, check=True)
    if asked.stdout.strip() != "another user":
        pytest.skip("the grader is not root here, or other users cannot read its Python")
    notebook = toy_course(tmp_path)
    for name, scratch in SCRATCH.items():
        own = nbformat.from_dict(notebook)
        next(cell for cell in own.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == "blend").source = BLEND
        own.cells.insert(0, nbformat.v4.new_code_cell(scratch))
        write(own, tmp_path / "submitted" / name / "1_toy" / "1_toy.ipynb")
    done = subprocess.run([sys.executable, ROOT / "solutions" / "grade.py", tmp_path / "submitted", "--root", tmp_path,
                           "--output", tmp_path / "grades"], env=environment, capture_output=True, text=True, check=False)
    said = f"{done.stdout} {done.stderr}".replace("\n", " ")
    assert done.returncode == 0 and "as a user of their own each" in said, said
    with open(tmp_path / "grades" / "grades.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert {cell: row[cell] for cell in FULL} == FULL, row
            assert row["note"] == "the answer 'why' waits for a hand" or row["student"] != "honest"
    page = (tmp_path / "grades" / "feedback" / "1_toy" / "reads.html").read_text(encoding="utf-8")
    assert "OPENED -1 USER True BACK -1" in page
