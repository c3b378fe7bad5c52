"""How the bench measures: the sides of a ratio by turns, threads tried out, memory and imports in fresh processes."""
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from clip_adapter_lite.devices import threads

HERE = Path(__file__).parent
TURNS = 5


@dataclass(frozen=True)
class Measured:
    """A figure's value, a sentence with the raw numbers and settings, and whether what it presumes held."""
    value: float
    detail: str
    holds: bool = True


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_turns(*sides: Callable[[], object], quick: bool = False, turns: int = TURNS) -> list[list[float]]:
    """Seconds of each side in five rounds A B A B …, so that a busy machine slows both; one round before is not counted."""
    for side in sides:
        side()
    rounds = [[seconds(side) for side in sides] for _ in range(1 if quick else turns)]
    return [list(column) for column in zip(*rounds)]


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the rounds' ratios, each of two measurements that were made one after the other."""
    return median(a / b for a, b in zip(over, under))


def plural(count: int, what: str = "thread") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def fastest(work: Callable[[], object]) -> tuple[int, str]:
    """The number of torch threads, 1 or all, that `work` is fastest with, and a phrase with the seconds of each."""
    found = {}
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            work()
            found[count] = min(seconds(work), seconds(work))
    tried = ", ".join(f"{taken:.3g} s with {plural(count)}" for count, taken in found.items())
    return min(found, key=found.get), tried


# ── in fresh processes ────────────────────────────────────────────────────────────────────────────────────────────

def python(code: str, *arguments) -> list | float:
    """What `code` prints as JSON, run by a fresh interpreter that finds these files; sys.argv holds the arguments."""
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"a fresh process ended with {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def call_fresh(function: Callable, *arguments):
    """`function(*arguments)`, a JSON value, in a fresh process. Arguments are numbers and words."""
    code = (f"import json, sys; from {function.__module__} import {function.__name__} as f; "
            "print(json.dumps(f(*json.loads(sys.argv[1]))))")
    return python(code, json.dumps(arguments))


def _resident(mark: str) -> float:
    """This process's resident memory in MB now (VmRSS) or at its greatest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(mark))


def peak_memory(work: Callable[[], object]) -> tuple[float, float]:
    """(resident MB when `work` began, the greatest while it ran) of this process, which should be a fresh one; Linux.

    The kernel's high-water mark is set back first. getrusage's ru_maxrss would not do: a child process inherits its
    parent's, so that a bench that once took 8 GB would read 8 GB everywhere.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return before, _resident("VmHWM")
