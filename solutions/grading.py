"""Grading one submission with nbgrader's autograder, in a scratch course with a gradebook of its own.

`prepared` makes the course of an assignment once; `graded` copies it for one submission. Each of these runs in a process of
its own (`apart`), which may therefore change its environment and folder, and is killed with all that it started.
"""
import copy
import html
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat
from assignments import HIDDEN_NOTE, ROOT, settings
from nbconvert.exporters import HTMLExporter
from nbgrader.api import Gradebook
from nbgrader.converters.autograde import Autograde
from nbgrader.converters.generate_assignment import GenerateAssignment
from nbgrader.converters.generate_feedback import GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import Execute
from submissions import in_order, read
from texts import hidden
from watching import CarefulExecute, Limits, adopt_orphans, kill_all

GUARD = Path(__file__).with_name("guard.py")
STUDENT = "submission"  # in the scratch course; real names may hold anything
LONGEST = 10            # a submission may take this many times a cell's limit, by the clock


@dataclass
class Result:
    """What the grader found. Kept as JSON, so that a submission is graded once."""
    student: str
    assignment: str
    digest: str = ""
    scores: dict[str, float] = field(default_factory=dict)    # of the autograded cells
    points: dict[str, float] = field(default_factory=dict)    # the most that each cell can give, written ones too
    waiting: dict[str, str] = field(default_factory=dict)     # answers that wait for a hand
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0                                      # of processor time


def apart(function, *arguments):
    """Start `function(*arguments)` in a process of its own, in a session of its own. The caller has one thread."""
    process = multiprocessing.get_context("fork").Process(target=_apart, args=(function, arguments))
    process.start()
    return process


def _apart(function, arguments) -> None:
    os.setsid()
    adopt_orphans()
    try:
        function(*arguments)
    finally:
        kill_all(os.getpid(), itself=False)


def warm_up(folder: Path) -> None:
    """Do once, here, what every process and every kernel would do anew: matplotlib's list of fonts, put into `folder`, and
    what nbconvert imports and compiles for its first page.
    """
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=False, capture_output=True,
                   env={**os.environ, "MPLCONFIGDIR": str(folder)})
    error = nbformat.v4.new_output("error", ename="E", evalue="e", traceback=["\x1b[0;31mE\x1b[0m: e"])
    page = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}}, cells=[
        nbformat.v4.new_markdown_cell("# a\n$b$ `c`"),
        nbformat.v4.new_code_cell("def f(x):\n    return 'y'", outputs=[error])])
    HTMLExporter(template_name="classic").from_notebook_node(page)


def prepared(source: Path, course: Path) -> None:
    """Make the scratch course of an assignment: its source notebook, its hand-out, a gradebook that knows its cells."""
    name = source.stem
    config = settings(course)
    folder = course / config.CourseDirectory.source_directory / name
    folder.mkdir(parents=True)
    shutil.copy(source, folder)
    quiet(GenerateAssignment(coursedir=CourseDirectory(config=config, assignment_id=name), config=config)).start()


def notebooks(course: Path, name: str) -> tuple:
    """The source notebook and the hand-out of a prepared course."""
    config = settings(course).CourseDirectory
    return tuple(nbformat.read(course / folder / name / f"{name}.ipynb", as_version=4)
                 for folder in (config.source_directory, config.release_directory))


def quiet(converter):
    converter.log.setLevel(logging.CRITICAL)
    return converter


def blank_result(student: str, source) -> Result:
    """The result of a submission that could not be graded at all: nothing for any cell."""
    result = Result(student, "")
    for cell in source.cells:
        about = cell.metadata.get("nbgrader", {})
        if about.get("grade"):
            result.points[about.grade_id] = float(about.points)
            if not about.solution:
                result.scores[about.grade_id] = 0.0
    return result


def graded(course: Path, submitted: Path, student: str, name: str, scratch: Path, limits: Limits,
           forbidden: list[Path], ours: list[Path] = ()) -> None:
    """Grade one submission; writes `result.json` and `feedback.html` into `scratch`, an empty folder.

    course: of `prepared`. forbidden: folders whose files are compared before and after. ours: those
    in them that the grader itself writes to meanwhile.
    """
    started = time.process_time()
    with open(scratch / "log.txt", "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    source, hand_out = notebooks(course, name)
    result = blank_result(student, source)
    before = states(forbidden, ours)
    try:
        notebook, result.notes = in_order(read(submitted), source, hand_out)
    except ValueError as error:
        result.notes.append(str(error))
        write_result(result, scratch)
        why = html.escape(str(error))
        (scratch / "feedback.html").write_text(f"<p>Nothing was graded: {why}</p>", encoding="utf-8")
        return
    own = scratch / "course"
    shutil.copytree(course, own)
    place = own / "submitted" / STUDENT / name / f"{name}.ipynb"
    place.parent.mkdir(parents=True)
    nbformat.write(notebook, place)
    work = scratch / "work"
    surroundings(work, scratch, notebook, source, limits)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000_000, 200_000_000))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory * 1_000_000,) * 2)  # RLIMIT_AS would stop torch itself
    CarefulExecute.limits, CarefulExecute.notes, CarefulExecute.folder = limits, [], str(work)
    config = settings(own)
    config.CarefulExecute.shutdown_kernel = "immediate"  # what a submission left to do at the end of its kernel is not done
    autograde = Autograde(coursedir=CourseDirectory(config=config, assignment_id=name), config=config)
    autograde.autograde_preprocessors = [CarefulExecute if step is Execute else step
                                         for step in autograde.autograde_preprocessors]
    quiet(autograde).start()
    result.notes += in_sentences([*CarefulExecute.notes, *told_by_guard(scratch)])
    if written := changed(before, states(forbidden, ours)):
        result.notes.append("while it ran, files outside its folder changed, by it, by another "
                            f"submission or by a program of yours: {', '.join(written[:5])}")
    take_scores(result, own, name, notebook)
    feedback(own, name, source, scratch / "feedback.html", config)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result.seconds = round(time.process_time() - started + used[1].ru_utime + used[1].ru_stime, 2)
    write_result(result, scratch)


def write_result(result: Result, scratch: Path) -> None:
    partial = scratch / "result.json.partial"
    partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
    partial.replace(scratch / "result.json")


def surroundings(work: Path, scratch: Path, notebook, source, limits: Limits) -> None:
    """An environment of its own for the kernel: folders in `scratch`, one thread, no network settings, and the guard."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX",
                                             "SYSTEMROOT") if key in os.environ}
    ipython, runtime = scratch / "ipython", scratch / "runtime"
    startup = ipython / "profile_default" / "startup"
    for folder in (work / "tmp", work / ".config" / "matplotlib", startup, runtime):
        folder.mkdir(parents=True)
    for fonts in scratch.parent.glob("fontlist*.json"):  # or matplotlib looks for fonts in every kernel
        shutil.copy(fonts, work / ".config" / "matplotlib")
    os.environ.clear()
    os.environ.update(kept, HOME=str(work), TMPDIR=str(work / "tmp"), IPYTHONDIR=str(ipython), MPLCONFIGDIR=str(
        work / ".config" / "matplotlib"), JUPYTER_RUNTIME_DIR=str(runtime), JUPYTER_CONFIG_DIR=str(runtime),
        JUPYTER_DATA_DIR=str(runtime), CLIP_ADAPTER_LITE_CACHE=str(work / "cache"), HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1",
        PYTHONNOUSERSITE="1", PYTHONHASHSEED="0")
    cells = {cell.source: cell.metadata.get("nbgrader", {}).get("grade_id", f"number {number + 1}")
             for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    checks = {text: name for text, name in cells.items()
              if any(cell.source == text and cell.metadata.get("nbgrader", {}).get("grade") for cell in source.cells)}
    readable = [str(ipython), str(runtime), str(ROOT / "clip_adapter_lite"),
                *(path for path in sys.path if path and not ROOT.is_relative_to(path) and Path(path) != GUARD.parent)]
    about = {"work": str(work), "report": str(scratch / "guard.jsonl"), "checks": checks, "cells": cells,
             "most_characters": limits.characters, "readable": readable}
    (startup / "settings.json").write_text(json.dumps(about), encoding="utf-8")
    shutil.copy(GUARD, startup / "guard.txt")  # not .py, or IPython would run it as a start-up file
    (startup / "start.py").write_text(f"""\
def _start(folder={str(startup)!r}):
    import json
    names = {{"__name__": "guard"}}
    exec(compile(open(folder + "/guard.txt", encoding="utf-8").read(), "guard.py", "exec"), names)
    names["start"](**json.load(open(folder + "/settings.json", encoding="utf-8")))
_start()
del _start
""", encoding="utf-8")


def told_by_guard(scratch: Path) -> list[tuple[str, str]]:
    path, found = scratch / "guard.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[:200] if path.exists() else ():
        with suppress(ValueError, TypeError):
            cell, text = json.loads(line)
            found.append((str(cell)[:60], str(text)[:300]))
    return found


def in_sentences(told: list[tuple[str, str]]) -> list[str]:
    """Notes of the form "the cells blend-visible, blend-hidden ended Python itself", from (cell, text)."""
    cells: dict[str, list[str]] = {}
    for cell, text in dict.fromkeys(told):
        cells.setdefault(text, []).append(cell)
    return [f"the {'cell' if len(names) == 1 else 'cells'} {', '.join(names)} {text}" for text, names in cells.items()]


def states(folders: list[Path], ours: list[Path] = ()) -> dict[str, tuple[int, int]]:
    """Time and size of every file in the folders, by path.

    Not of those in `ours`, and of no hidden ones: editors and systems make them.
    """
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                passed = any(map(hidden, path.relative_to(folder).parts)) or \
                    any(map(path.is_relative_to, ours))
                if not passed and path.is_file():
                    found[str(path)] = (path.stat().st_mtime_ns, path.stat().st_size)
    return found


def changed(before: dict, after: dict) -> list[str]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def take_scores(result: Result, course: Path, name: str, notebook) -> None:
    """Read the scores from the gradebook, and the answers that wait for a hand from the submission."""
    answers = {cell.metadata.nbgrader.grade_id: cell.source for cell in notebook.cells if "nbgrader" in cell.metadata}
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for grade in gradebook.find_submission_notebook(name, name, STUDENT).grades:
            if grade.name in result.scores:
                result.scores[grade.name] = float(grade.auto_score or 0.0)
            elif grade.auto_score is None:
                result.waiting[grade.name] = answers[grade.name]
            else:
                result.scores[grade.name] = float(grade.auto_score)  # left blank: nothing to read


def feedback(course: Path, name: str, source, to: Path, config) -> None:
    """Write nbgrader's feedback page, without the hidden tests: their source, their output, and lines of them elsewhere."""
    path = course / "autograded" / STUDENT / name / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    hidden = [cell for cell in source.cells if cell.source.startswith(HIDDEN_NOTE)]
    secret = {line.strip() for cell in hidden for line in cell.source.split("\n")[1:] if len(line.strip()) >= 25}
    secret -= {line.strip() for cell in source.cells if cell not in hidden for line in cell.source.split("\n")}
    ids = {cell.metadata.nbgrader.grade_id for cell in hidden}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if cell.metadata.get("nbgrader", {}).get("grade_id") in ids:
            failed = [output.evalue for output in cell.outputs if output.output_type == "error"]
            stopped = failed and failed[-1].startswith("This cell ") and failed[-1].endswith("so it was not run again.")
            verdict = failed[-1] if stopped else "The hidden tests did not pass." if failed else "The hidden tests passed."
            cell.source, cell.outputs = HIDDEN_NOTE, [nbformat.v4.new_output("stream", name="stdout", text=verdict)]
            continue
        cell.outputs = [output for output in cell.outputs if not shows(output, secret)]
        if cell.metadata.get("nbgrader", {}).get("grade"):  # of a check, the sentence; its frames are in the library
            for output in cell.outputs:
                if output.output_type == "error":
                    output.traceback = [f"{output.ename}: {output.evalue}"]
    path.chmod(0o644)
    nbformat.write(notebook, path)
    quiet(GenerateFeedback(coursedir=CourseDirectory(config=config, assignment_id=name), config=config)).start()
    shutil.move(course / "feedback" / STUDENT / name / f"{name}.html", to)


def shows(output, lines: set[str]) -> bool:
    """Whether an output holds one of the lines, apart from its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(strings(output)))
    return any(line in text or repr(line)[1:-1] in text for line in lines)


def strings(value):
    """All strings in a nested structure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def finished(process, scratch: Path, student: str, source, reason: str = "") -> Result:
    """The result of a process of `graded` that ended, or, for a `reason`, is ended here. Kills what is left of it."""
    if process.is_alive():
        kill_all(process.pid)
    process.join()
    path = scratch / "result.json"
    if path.exists() and not reason:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    result = copy.deepcopy(blank_result(student, source))
    log = (scratch / "log.txt").read_text(errors="replace") if (scratch / "log.txt").exists() else ""
    last = log.strip().splitlines()[-1:] or [f"exit {process.exitcode}"]
    result.notes.append(reason or f"the grader itself failed, please look at this one by hand: {last[0][:200]}")
    return result
