"""Grade a folder of submissions: scores in grades.csv, a feedback page for each, notes for the instructor.

    python solutions/grade.py --help
"""
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent))

import gradebooks  # noqa: E402
import grading  # noqa: E402
import walls  # noqa: E402
from assignments import HERE, ROOT  # noqa: E402
from submissions import Submission, content, found_in  # noqa: E402
from watching import Limits  # noqa: E402

console = Console(stderr=True)


def digest(submission: Submission, limits: Limits, source: Path) -> str:
    """Of everything that a score depends on: the submission, the assignment, the limits and the grader."""
    found = hashlib.sha256(repr(limits).encode())
    try:
        submitted = content(submission.path)
    except ValueError as error:  # it gets a note and no points, and the others are graded
        submitted = str(error).encode()
    for data in (submitted, *(path.read_bytes() for path in (source, *sorted(HERE.glob("*.py"))))):
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


def grade_all(submissions: list[Submission], sources: dict[str, Path], output: Path, *, limits: Limits = Limits(),
              jobs: int = 0, again: bool = False, folder: Path | None = None, progress=None,
              seed: int | None = None) -> list[grading.Result]:
    """Grade the submissions on `jobs` cores (0: all), each in a process of its own, in any order.

    sources: {assignment: source notebook}. Results, feedback pages and what a later call needs to pass over finished
    submissions are written below `output`, one by one. folder: of the submissions, which none of them may read or change.
    progress: called with each result. seed: by which the hidden inputs are drawn; None: one that nobody knows before.
    """
    results, todo = [], []
    for submission in submissions:
        kept = place(output / "results", submission, ".json")
        mark = digest(submission, limits, sources[submission.assignment])
        if not again and (found := kept_result(kept)) and found.digest == mark and \
                place(output / "feedback", submission, ".html").exists():
            results.append(found)
            if progress:
                progress(found)
            continue
        todo.append((submission, mark))
    if not todo:
        return results
    seed = secrets.randbits(40) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="grading-") as scratch:
        scratch = Path(scratch)
        grading.warm_up(scratch)
        courses = prepared_courses({one.assignment: sources[one.assignment] for one, _ in todo}, scratch)
        watched = sorted({path.parent for path in sources.values()}) + ([folder] if folder else [])
        ours = [(output / name).resolve() for name in ("results", "feedback")]  # `keep` writes there

        def start(submission: Submission):
            own = Path(tempfile.mkdtemp(dir=scratch))
            return own, grading.apart(
                grading.graded, courses[submission.assignment][0], submission.path.absolute(),
                submission.student, submission.assignment, own, limits, watched, ours, seed)

        marks, longest = dict(todo), grading.LONGEST * limits.clock
        for submission, own, process, late in in_parallel(list(marks), start, jobs or cores(), longest):
            reason = f"the submission was stopped after {longest} s, nothing could be graded" if late else ""
            result = grading.finished(process, own, submission.student, courses[submission.assignment][1], reason)
            result.assignment, result.digest = submission.assignment, marks[submission]
            keep(result, own, submission, output)
            shutil.rmtree(own, ignore_errors=True)
            results.append(result)
            if progress:
                progress(result)
    return results


def in_parallel(items: list, start, jobs: int, longest: float):
    """Yield (item, folder, process, late) as the processes end that `start(item)` begins, `jobs` at a time.

    late: it has run for `longest` seconds, and has not ended. What runs when the caller stops is killed.
    """
    waiting, running = list(reversed(items)), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                item = waiting.pop()
                folder, process = start(item)
                running[process.sentinel] = (item, folder, process, time.monotonic())
            ended = wait(list(running), timeout=0.2)
            late = [key for key, (*_, since) in running.items() if time.monotonic() - since > longest]
            for key in dict.fromkeys([*ended, *late]):
                item, folder, process, _ = running.pop(key)
                yield item, folder, process, key not in ended
    finally:
        for _, _, process, _ in running.values():
            grading.kill_all(process.pid)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepared_courses(sources: dict[str, Path], scratch: Path) -> dict[str, tuple]:
    """{assignment: (its scratch course, its source notebook)}; ValueError names an assignment that nbgrader refuses."""
    found = {}
    for name, source in sources.items():
        course = scratch / f"course-{name}"
        process = grading.apart(grading.prepared, source, course)
        process.join()
        if process.exitcode:
            raise ValueError(f"nbgrader could not prepare {source}; run `make exercises` and see what it says.")
        found[name] = (course, grading.notebooks(course, name)[0])
    return found


def kept_result(path: Path) -> grading.Result | None:
    """The result of an earlier run, if there is one that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return grading.Result(**json.loads(path.read_text(encoding="utf-8")))
    return None


def place(folder: Path, submission: Submission, suffix: str) -> Path:
    return folder / submission.assignment / f"{submission.student}{suffix}"


def keep(result: grading.Result, own: Path, submission: Submission, output: Path) -> None:
    """Write the result and the feedback page of one submission."""
    page, kept = place(output / "feedback", submission, ".html"), place(output / "results", submission, ".json")
    for path in (page, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
    html = own / "feedback.html"
    text = html.read_text(encoding="utf-8") if html.exists() else "<p>Nothing could be graded; ask your instructor.</p>"
    write(page, text)
    write(kept, json.dumps(asdict(result), ensure_ascii=False, indent=1))


def write(path: Path, text: str) -> None:
    partial = path.with_name(".partial")  # a student's name may be as long as a file's may be
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)


def assignments(root: Path) -> dict[str, Path]:
    """{assignment: its source notebook} of the course."""
    return {path.stem: path for path in sorted((root / "solutions").glob("*/*.ipynb")) if path.stem == path.parent.name}


def main(
    submitted: Annotated[Path, typer.Argument(help="The folder of submissions.", exists=True, file_okay=False)],
    assignment: Annotated[str | None, typer.Option(help="Grade only this one; needed for <student>.ipynb files.")] = None,
    output: Annotated[Path, typer.Option(help="Where grades.csv and the feedback pages go.")] = Path("grades"),
    jobs: Annotated[int, typer.Option(help="Submissions at a time; 0: as many as there are cores.")] = 0,
    seconds: Annotated[int, typer.Option(min=1, help="Processor time a cell; four times that by the clock.")] = 30,
    memory: Annotated[int, typer.Option(min=1000, help="MB for one submission.")] = 3000,
    again: Annotated[bool, typer.Option("--again", help="Grade also what was graded before with the same bytes.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, max=2 ** 40, show_default="drawn anew", help="Of the hidden inputs, as "
                                             "it stands in grades/results; with --again it repeats an earlier run.")] = None,
    hand: Annotated[Path | None, typer.Option(help="by_hand.csv with points for the written answers.", exists=True)] = None,
    canvas: Annotated[Path | None, typer.Option(help="Canvas's exported gradebook; makes canvas.csv.", exists=True)] = None,
    moodle: Annotated[Path | None, typer.Option(help="Moodle's worksheet or export; makes moodle.csv.", exists=True)] = None,
    root: Annotated[Path, typer.Option(help="The course's folder, with solutions/ in it.")] = ROOT,
):
    """Grade a folder of submissions.

    The folder is laid out as nbgrader's submitted/:

        submitted/ada/3_adapter/3_adapter.ipynb

        submitted/ben/3_adapter/3_adapter.ipynb

    Then

        python solutions/grade.py submitted

    writes grades/grades.csv (a row for each submission, a column for each check), grades/feedback/3_adapter/ada.html and so
    on, and, if there are written answers, grades/by_hand.csv: fill in its column "points" and pass it with --hand.
    A second run grades only what is new or changed. Submissions in one folder, as many learning platforms give them
    (3_adapter/ada.ipynb), are graded with

        python solutions/grade.py 3_adapter --assignment 3_adapter

    An unpacked download of Canvas's or Moodle's needs no --assignment if its files are named after one.

    A submission that loops, exits, eats memory or is damaged loses the marks that depend on that; the others are graded all
    the same, and its row has a note. solutions/README.md says what the grader keeps apart and what it does not.
    """
    sources = assignments(root)
    try:
        if assignment and assignment not in sources:
            raise ValueError(f"there is no assignment {assignment!r}; there are {', '.join(sources) or 'none'}.")
        submissions, remarks = found_in(submitted, list(sources), assignment, output)
        points = gradebooks.hand_points(hand) if hand else {}
        console.print(walls.said(), highlight=False, soft_wrap=True)
        for remark in remarks:
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
        with Progress(TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
            bar.live.auto_refresh = False  # one thread, or a fork could stand still
            task = bar.add_task("grading", total=len(submissions))

            def progress(result) -> None:
                bar.advance(task)
                bar.refresh()
                for note in result.notes:
                    bar.console.print(f"{result.student} · {result.assignment}: {note}", markup=False, highlight=False,
                                      soft_wrap=True)

            limits, began = Limits(seconds, 4 * seconds, memory), time.monotonic()
            results = grade_all(submissions, sources, output, limits=limits, jobs=jobs, again=again, seed=seed,
                                folder=submitted.resolve(), progress=progress)
        took = time.monotonic() - began
        rows = gradebooks.rows(results, points)
        write(output / "grades.csv", gradebooks.as_csv(rows))
        written = [output / "grades.csv"]
        if waiting := gradebooks.by_hand(results, points):
            # without a mark Excel takes it for cp1252
            write(output / "by_hand.csv", "\ufeff" + gradebooks.as_csv(waiting))
            written.append(output / "by_hand.csv")
        for name, roster, fill in (("canvas", canvas, gradebooks.canvas), ("moodle", moodle, gradebooks.moodle)):
            if roster:
                table, missing = fill(roster, rows)
                write(output / f"{name}.csv", table)
                written.append(output / f"{name}.csv")
                for line in missing:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
    except ValueError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(summary(rows))
    rate = 60 * len(results) / max(took, 0.1)
    console.print(f"{len(results)} submissions in {took / 60:.1f} minutes: {rate:.1f} a minute.", highlight=False)
    console.print(f"Written: {', '.join(map(str, written))} and {output / 'feedback'}", highlight=False, soft_wrap=True)


def summary(rows: list[dict]) -> Table:
    table = Table("student", "assignment", "total", "of", "waiting", "note")
    for row in rows:
        table.add_row(row["student"], row["assignment"], f"{row['total']:g}", f"{row['max']:g}", f"{row['waiting']:g}",
                      row["note"][:60])
    return table


if __name__ == "__main__":
    typer.run(main)
