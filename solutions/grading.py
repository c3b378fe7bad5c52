"""Grading one submission with nbgrader's autograder and our judge, in a scratch course with a gradebook of its own.

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
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat
import walls
from assignments import HIDDEN_NOTE, ROOT, settings
from judging import JudgedExecute, undisturbed
from nbconvert.exporters import HTMLExporter
from nbgrader.api import Gradebook
from nbgrader.converters.autograde import Autograde
from nbgrader.converters.generate_assignment import GenerateAssignment
from nbgrader.converters.generate_feedback import GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import Execute
from ordering import in_order
from pages import complete
from submissions import read
from texts import hidden
from watching import Limits, adopt_orphans, kill_all

import clip_adapter_lite

LIBRARY = Path(clip_adapter_lite.__file__).resolve().parent
JUDGES = Path(__file__).resolve().parent
STUDENT = "submission"  # in the scratch course; real names may hold anything
LONGEST = 5             # a submission may take this many times a cell's limit, by the clock


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
    seed: int = 0                                             # by which the hidden inputs were drawn


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
    course.chmod(0o700)
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
           forbidden: list[Path], ours: list[Path] = (), seed: int = 0) -> None:
    """Grade one submission; writes `result.json` and `feedback.html` into `scratch`, an empty folder.

    course: of `prepared`. forbidden: folders whose files are compared before and after. ours: those
    in them that the grader itself writes to meanwhile. seed: of the hidden inputs.
    """
    started = time.process_time()
    with open(scratch / "log.txt", "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    source, hand_out = notebooks(course, name)
    result = blank_result(student, source)
    result.seed = seed
    undisturbed(seed)
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
    walls.passable(scratch, own)
    place = own / "submitted" / STUDENT / name / f"{name}.ipynb"
    place.parent.mkdir(parents=True)
    nbformat.write(notebook, place)
    JudgedExecute.limits, JudgedExecute.notes, JudgedExecute.source = limits, [], source
    JudgedExecute.folder = scratch / "runs"
    JudgedExecute.settings, JudgedExecute.environment = surroundings(scratch, limits)
    JudgedExecute.fonts = sorted(scratch.parent.glob("fontlist*.json"))  # or matplotlib looks for fonts in every process
    config = settings(own)
    autograde = Autograde(coursedir=CourseDirectory(config=config, assignment_id=name), config=config)
    autograde.autograde_preprocessors = [JudgedExecute if step is Execute else step
                                         for step in autograde.autograde_preprocessors]
    quiet(autograde).start()
    result.notes += in_sentences(JudgedExecute.notes)
    if written := changed(before, states(forbidden, ours)):
        result.notes.append("while it ran, files outside its folder changed, by it, by another "
                            f"submission or by a program of yours: {', '.join(written[:5])}")
    take_scores(result, own, name, notebook)
    feedback(own, name, source, scratch / "feedback.html", config)
    result.seconds = round(time.process_time() - started + JudgedExecute.seconds, 2)
    write_result(result, scratch)


def write_result(result: Result, scratch: Path) -> None:
    partial = scratch / "result.json.partial"
    partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
    partial.replace(scratch / "result.json")


def surroundings(scratch: Path, limits: Limits) -> tuple[dict, dict]:
    """(settings of learner.py, environment) of a submission's processes: a folder of their own, one thread, no network."""
    work = scratch / "work"
    work.mkdir()
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX",
                                             "SYSTEMROOT") if key in os.environ}
    environment = kept | dict(
        HOME=str(work), TMPDIR=str(work), IPYTHONDIR=str(work / ".ipython"),
        MPLCONFIGDIR=str(work / ".config" / "matplotlib"),
        MPLBACKEND="module://matplotlib_inline.backend_inline", CLIP_ADAPTER_LITE_CACHE=str(work / "cache"),
        HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1",
        PYTHONNOUSERSITE="1", PYTHONHASHSEED="0", PYTHONPATH=str(LIBRARY.parent))
    about = map(str, LIBRARY.parent.glob("clip_adapter_lite*-info"))  # Python looks for entry points in it
    readable = [str(LIBRARY), *about, *(path for path in sys.path if path and os.path.isdir(path)
                                        and Path(path) != JUDGES and not ROOT.is_relative_to(path)
                                        and not LIBRARY.parent.is_relative_to(path))]
    return {"work": str(work), "readable": readable, "characters": limits.characters}, environment


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
    page = (course / "feedback" / STUDENT / name / f"{name}.html").read_text(encoding="utf-8")
    to.write_text(complete(page, source), encoding="utf-8")


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
