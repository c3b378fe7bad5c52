"""What submissions have done, or could do, to get points without an answer, or to stop the grader: none of it pays.

Each attack stands in a scratch cell above blank answers, or in an answer, of a small assignment that has what the real
ones have: tensors, gradients, a function among the arguments, another answer that is replaced.
"""
import copy
import csv
import re
import time

import nbformat
import pytest
import typer
from submitting import ROOT, write
from toy import toy_course
from typer.testing import CliRunner

import assignments  # isort: skip (from solutions/, which submitting puts on the path)
import grade  # isort: skip
import walls  # isort: skip

APP = typer.Typer()
APP.command()(grade.main)
SOURCE = '''\
# %% [markdown]
# # Toy

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
import torch

from clip_adapter_lite.checks import check

# %% nbgrader={"solution": "blend"}
def blend(adapted, features, alpha):
    """The blend."""
    ### BEGIN SOLUTION
    return alpha * adapted + (1 - alpha) * features
    ### END SOLUTION

# %% nbgrader={"visible": "blend", "points": 20}
check("blend", blend(torch.tensor([4.0]), torch.tensor([8.0]), 0.25), [7.0], {"α and 1 − α are swapped": [5.0]})

# %% nbgrader={"hidden": "blend", "points": 30}
def _hidden():
    from random import Random

    from clip_adapter_lite.checks import fresh
    secret_maker = Random(fresh(1))
    for secret_size in (1, 4):
        a, f, up = ([secret_maker.uniform(-3, 3) for _ in range(secret_size)] for _ in range(3))
        share = secret_maker.uniform(0, 1)
        given = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (a, f)]
        found = blend(*given, share)
        (found * torch.tensor(up)).sum().backward()
        right = [share * x + (1 - share) * y for x, y in zip(a, f)]
        assert len(found.tolist()) == secret_size
        assert all(-1e-9 < x - y < 1e-9 for x, y in zip(found.tolist(), right))
        assert all(-1e-6 < x - share * y < 1e-6 for x, y in zip(given[0].grad.tolist(), up))
        assert [x.tolist() for x in given] == [a, f]


_hidden()

# %% nbgrader={"solution": "twice"}
def twice(function, x):
    """function(function(x)), times blend(2, 0, 1), which is 2."""
    ### BEGIN SOLUTION
    return function(function(x)) * blend(2.0, 0.0, 1.0)
    ### END SOLUTION

# %% nbgrader={"visible": "twice", "points": 10}
from unittest.mock import patch

with patch.dict(globals(), blend=lambda a, f, alpha: 2.0):
    check("twice", twice(lambda x: x + 1, 3.0), 10.0)

# %% nbgrader={"hidden": "twice", "points": 40}
def _hidden():
    from random import Random
    from unittest.mock import patch

    from clip_adapter_lite.checks import fresh
    secret_maker = Random(fresh(2))
    slope, start, factor = (secret_maker.uniform(1, 3) for _ in range(3))
    with patch.dict(globals(), blend=lambda a, f, alpha: factor):
        found = twice(lambda x: slope * x, start)
    assert -1e-9 < found - slope * slope * start * factor < 1e-9


_hidden()
'''
FULL = {"blend-visible": 20, "blend-hidden": 30, "twice-visible": 10, "twice-hidden": 40}
NONE = dict.fromkeys(FULL, 0)
BLEND = "def blend(adapted, features, alpha):\n    return alpha * adapted + (1 - alpha) * features\n"
TWICE = "def twice(function, x):\n    return function(function(x)) * blend(2.0, 0.0, 1.0)\n"


def any_answer(text: str) -> dict:
    return {"blend": f"def blend(*given):\n{text}", "twice": f"def twice(*given):\n{text}"}


# what stands in which cell ("scratch" is above all), the scores that it deserves, and what the notes must say
ATTACKS = {
    # issue 19
    "empties_every_cell": ({
        "scratch": "get_ipython().input_transformers_cleanup.append(lambda lines: ['pass\\n'])"}, NONE, ""),
    "runs_no_code": ({"scratch": "async def run_code(*_, **__):\n    return False\n\n\nget_ipython().run_code = run_code"},
                     NONE, ""),
    "empties_every_tree": ({"scratch": """import ast


class Empty(ast.NodeTransformer):
    def visit_Module(self, node):
        node.body = []
        return node


get_ipython().ast_transformers.append(Empty())"""}, NONE, ""),
    "reads_the_checks_variables": (any_answer("""\
    import gc, sys
    frame, found = sys._getframe(), []
    while frame:
        found += [frame.f_locals.get('right'), frame.f_globals.get('right')]
        frame = frame.f_back
    found += [x['right'] for x in gc.get_objects() if type(x) is dict and 'right' in x]
    return next((x for x in found if x is not None), 0)"""), NONE, ""),
    "replaces_patch": ({
        "scratch": "import unittest.mock\nunittest.mock.patch = None"} | any_answer("    return 0"), NONE, ""),
    "lies_in_tolist": (any_answer("""\
    class Liar(float):
        def tolist(self): return Liar(0)
        def __sub__(self, other): return 0.0
        def __eq__(self, other): return True
        def __lt__(self, other): return True
        __float__ = __gt__ = __rsub__ = __sub__
    return Liar(0)"""), NONE, ""),
    "draws_zeros": ({"scratch": "import random\nrandom.Random.uniform = lambda *_: 0.0"}
                    | any_answer("    return 0.0 * given[1]"), NONE, ""),
    "erases_the_notes": ({"scratch": """import os
try:
    open('/etc/passwd')
except OSError:
    pass
for fd in range(3, 100):
    try:
        os.ftruncate(fd, 0)
    except OSError:
        pass"""}, NONE, "tried to read /etc/passwd"),
    "looks_for_the_tests": ({"scratch": f"""import glob
for pattern in ({str(ROOT / 'solutions' / 'src' / '*.py')!r}, '/tmp/grading-*/**/*.ipynb', '/proc/*/environ'):
    for path in glob.glob(pattern, recursive=True):
        try:
            print(open(path, errors='replace').read()[:100_000])
        except Exception as error:
            print(type(error))"""}, NONE, ""),
    "writes_half_a_gigabyte": ({"scratch": "import os\nfor _ in range(500):\n    os.write(1, bytes(1_000_000))",
                                "blend": BLEND, "twice": TWICE}, FULL, ""),
    # round the wall
    "says_that_all_is_right": ({"scratch": """import sys
wire = sys.modules['wire']
wire.Wire._serve_call = lambda self, message, tensors: self.send({'re': message['id'], 'value': True, 'passed': True})"""},
                               NONE, ""),
    "ends_the_checks_itself": ({"scratch": """import json, os, struct
body = json.dumps({'done': 'check', 'outputs': []}).encode()
for fd in range(3, 60):
    try:
        os.write(fd, struct.pack('<II', len(body), 0) + body)
    except OSError:
        pass"""}, NONE, "broke the connection"),
    "breaks_the_wire": ({"scratch": "import json\njson.dumps = lambda *_, **__: '[]'"}, NONE, "the connection"),
    "asks_the_judge": ({"scratch": """import sys
wire = sys.modules['wire']
found = []
def take(self, message, tensors):
    for target in ({'mine': 0}, {'name': 'check'}, {'name': 'right'}, {'module': 0}):
        try:
            found.append(self.call(target, (1.0,), {}))
        except Exception:
            pass
    self.send({'re': message['id'], 'value': found[-1] if found else 0})
wire.Wire._serve_call = take"""}, NONE, ""),
    "answers_by_the_public_seed": ({"blend": """from random import Random


def blend(adapted, features, alpha):
    if len(adapted) == 1 and float(adapted) == 4.0:
        return torch.tensor([7.0])
    maker = Random(1)
    for size in (1, 4):
        a, f, up = ([maker.uniform(-3, 3) for _ in range(size)] for _ in range(3))
        share = maker.uniform(0, 1)
        if size == len(adapted):
            return share * torch.tensor(a) + (1 - share) * torch.tensor(f)"""},
                                   NONE | {"blend-visible": 20}, "look whether it only repeats"),
    "changes_what_it_is_given": ({
        "blend": "def blend(a, f, alpha):\n    a.data.zero_(), f.data.zero_()\n    return a + f"}, NONE, ""),
    "cannot_be_trained": ({
        "blend": BLEND.replace("return ", "return (") + "    ).detach()\n"}, NONE | {"blend-visible": 20}, ""),
    "gives_nan": (any_answer("    return torch.full_like(given[0], torch.nan) if len(given) > 2 else torch.nan"), NONE, ""),
    "gives_a_million_lists": (any_answer("    return [[]] * 20_000_000"), NONE, ""),
    "gives_no_end": (any_answer("    x = []\n    x.append(x)\n    return x"), NONE, ""),
    "never_ends": ({"blend": "def blend(*given):\n    while True:\n        pass\n", "twice": TWICE},
                   NONE | {"twice-visible": 10, "twice-hidden": 40}, "did not finish within"),
    "leaves_a_child_on_the_wire": ({"scratch": """import os, time
if os.fork() == 0:
    time.sleep(1000)
os._exit(0)"""}, NONE, "ended Python itself"),
    "forks_and_forks": ({"scratch": """import os, time
for _ in range(150):
    if os.fork() == 0:
        time.sleep(1000)
time.sleep(1000)"""}, NONE, "more than"),
    "answers_from_a_thread": ({"scratch": """import struct, sys, threading, json
wire = next(x for x in __import__('gc').get_objects() if type(x).__name__ == 'Wire')
def flood():
    for number in range(1, 20_000):
        try:
            wire.send({'re': number, 'value': 7.0})
        except Exception:
            return
threading.Thread(target=flood, daemon=True).start()"""}, NONE, ""),
    # fair
    "installs": ({"scratch": "!pip install x\n%pip install y\n", "blend": "!pip install z\n" + BLEND, "twice": TWICE},
                 FULL, "has a line that starts a program"),
}
if walls.kind():  # without walls, this would end the tests
    ATTACKS["ends_the_grader"] = ({"scratch": """import os, signal
for pid in {os.getppid(), 1, *(int(x) for x in os.listdir('/proc') if x.isdigit())} - {os.getpid()}:
    if pid > 0:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass""", "blend": BLEND, "twice": TWICE}, FULL, "")
if walls.kind() == "bubblewrap":
    ATTACKS["asks_the_machine"] = ({"scratch": f"""import ctypes, os
c = ctypes.CDLL(None)
fd = c.open({str(ROOT / 'README.md').encode()!r}, 0)
sock = c.socket(2, 1, 0)
print('OPENED', fd >= 0, 'PROCESSES', len([x for x in os.listdir('/proc') if x.isdigit()]) < 5)"""}, NONE, "")


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """({name: row of grades.csv}, {name: feedback page}, seconds) of one run of the command over all attacks."""
    root = tmp_path_factory.mktemp("attacked")
    notebook = toy_course(root, SOURCE)
    blank = assignments.hand_outs({"1_toy": notebook})["1_toy"]
    for name, (texts, *_) in ATTACKS.items():
        own = copy.deepcopy(blank)
        for cell in own.cells:
            if (text := texts.get(cell.metadata.get("nbgrader", {}).get("grade_id"))) is not None:
                cell.source = text
        if "scratch" in texts:
            own.cells.insert(0, nbformat.v4.new_code_cell(texts["scratch"]))
        write(own, root / "submitted" / name / "1_toy" / "1_toy.ipynb")
    began = time.monotonic()
    found = CliRunner().invoke(APP, [str(root / "submitted"), "--root", str(root), "--output", str(root / "grades"),
                                     "--seconds", "4"])
    assert found.exit_code == 0, found.output
    with open(root / "grades" / "grades.csv", encoding="utf-8", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    pages = {name: (root / "grades" / "feedback" / "1_toy" / f"{name}.html").read_text(encoding="utf-8") for name in ATTACKS}
    return rows, pages, time.monotonic() - began, found.output


@pytest.mark.grader
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_what_its_answers_deserve_and_its_note(name, graded):
    _, scores, note = ATTACKS[name]
    row = graded[0][name]
    assert {cell: float(row[cell]) for cell in FULL} == scores, row["note"]
    assert note in row["note"]
    assert "secret_" not in re.sub(r"<[^>]+>", "", graded[1][name])


@pytest.mark.grader
def test_the_instructor_is_told_of_the_walls_and_the_rate(graded):
    assert walls.said() in graded[3].replace("\n", " ") and "a minute" in graded[3]


@pytest.mark.grader
@pytest.mark.skipif(walls.kind() != "bubblewrap", reason="bubblewrap is not there, or may not make namespaces")
def test_behind_the_walls_there_is_nothing_to_see(graded):
    assert "OPENED False PROCESSES True" in graded[1]["asks_the_machine"]
