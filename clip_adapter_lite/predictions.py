"""A fitted classifier over many pictures: folders and patterns in, a table out, going on where it
was stopped.
"""
import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path

from .backbones import Backbone
from .datasets.base import SUFFIXES, pictures
from .encoding import Encoder, encoded
from .files import located, may_write, tensor_hash, unwritten, whole
from .inference import Prediction, predictions_of, style_for
from .methods import Classifier
from .naming import count
from .progress import bar
from .values import whole_number

KINDS = (".csv", ".jsonl")


def gathered(given: Sequence[str | Path]) -> list[Path]:
    """The picture files that paths, folders (with all below them) and patterns such as "a/*.jpg" or
    "a/**/*.png" name, in that order.

    Raises FileNotFoundError, one sentence, for what names none.
    """
    found: list[Path] = []
    absent = []
    for one in map(located, [given] if isinstance(given, (str, os.PathLike)) else given):
        if one.is_dir():
            here = pictures(one)
            if not here:
                raise FileNotFoundError(f"{one} holds no pictures ({', '.join(SUFFIXES)}); give "
                                        "another folder, or a picture's own path.")
        elif one.is_file():
            here = [one]
        else:
            names = sorted(glob(str(one), recursive=True)) if has_magic(str(one)) else []
            here = [Path(name) for name in names if name.lower().endswith(SUFFIXES)]
            if not here:
                absent.append(str(one))
        found += here
    if absent:
        raise FileNotFoundError(f"No such picture: {', '.join(absent[:5])}; check the path.")
    return found


def answers(classifier: Classifier, backbone: Backbone, files: Sequence[Path], top: int = 5, *,
            batch: int = 64, workers: int | None = None
            ) -> Iterator[list[tuple[Path, Prediction | str]]]:
    """Batch by batch, each picture with its `Prediction`, or with why it cannot be read."""
    encoder = Encoder(backbone, style_for(classifier, backbone, top))
    batches = [range(start, min(start + batch, len(files))) for start in range(0, len(files), batch)]
    for rows, good, features, bad in encoded(encoder, files, batches, workers or os.cpu_count() or 1):
        found: dict[int, Prediction | str] = dict(bad)
        if good:
            found |= dict(zip(good, predictions_of(classifier, features[:, 0], top)))
        yield [(files[row], found[row]) for row in rows]


def predict_files(classifier: Classifier, backbone: Backbone, given: Sequence[str | Path],
                  out: str | Path, *, top: int = 5, batch: int = 64, workers: int | None = None,
                  skip_unreadable: bool = False, force: bool = False,
                  progress: bool = True) -> tuple[Path, int, list[str]]:
    """Write what is in pictures (see `gathered`) to a table; returns its path, how many pictures it
    has, and why others could not be read.

    out: .csv, a row a picture (file, class_1, probability_1, … class_K, probability_K), or .jsonl,
        an object a picture; both with none_of_these and set where those were calibrated. Until all
        is done, finished rows are kept in OUT.part, from which the same call goes on; changed
        pictures and other settings are predicted again.
    skip_unreadable: leave them out. force: replace a file that is there.
    Raises OSError, naming all of them, for unreadable pictures, once everything else is finished;
    FileExistsError for a file that is there, and ValueError for another suffix, before any work.
    """
    out, top = located(out), whole_number(top, "top")
    if out.suffix.lower() not in KINDS:
        raise ValueError(f"Predictions are written as .csv or .jsonl; got {out}, so give --out "
                         f"{out.stem or 'predictions'}.csv (out=…).")
    if not force and os.path.isfile(out) and out.stat().st_size:
        raise FileExistsError(f"{out} is there already and stays as it is; give another --out "
                              "(out=…), or --force (force=True) to replace it.")
    may_write(out)
    files = gathered(given)
    part = Path(f"{out}.part")
    job = _job(classifier, backbone, top)
    done = _finished(part, job)
    marks = {file: _mark(file) for file in files}
    todo = [file for file in files if done.get(str(file), {}).get("mark") != marks[file]]
    unreadable: list[str] = []
    with _kept(part, job, done) as keep, _moving(len(files), len(files) - len(todo), progress) as move:
        for found in answers(classifier, backbone, todo, top, batch=batch, workers=workers):
            rows = [_row(file, answer, marks[file]) for file, answer in found
                    if not isinstance(answer, str)]
            unreadable += [answer for _, answer in found if isinstance(answer, str)]
            keep(rows)
            done |= {row["file"]: row for row in rows}
            move(len(found))
    if unreadable and not skip_unreadable:
        names = [why.split(" is not a readable picture")[0] for why in unreadable]
        more = f", and {len(names) - 20} more" if len(names) > 20 else ""
        raise OSError(f"{count(len(names), 'picture')} could not be read: {', '.join(names[:20])}"
                      f"{more}; mend or remove and give the same command again (everything else is "
                      f"kept in {part}), or leave them out with --skip-unreadable "
                      "(skip_unreadable=True).")
    rows = [done[str(file)] for file in files if str(file) in done]
    _write(out, rows, top, classifier)
    part.unlink(missing_ok=True)
    return out, len(rows), unreadable


def _job(classifier: Classifier, backbone: Backbone, top: int) -> dict:
    """What a row depends on beside its picture."""
    calibration = classifier.calibration and classifier.calibration.to_file()
    tensors, facts = calibration or ({}, {})
    return json.loads(json.dumps({
        "predictions": 1, "classifier": tensor_hash(classifier.head.state_dict()),
        "options": repr(classifier.head.options), "classnames": classifier.classnames,
        "calibration": [tensor_hash(tensors), facts], "backbone": backbone.name,
        "weights": backbone.tag, "top": top}))


def _mark(file: Path) -> list:
    """What changes with a picture's file: its size and its time."""
    try:
        about = file.stat()
    except OSError:  # gone meanwhile: told of with the unreadable ones
        return []
    return [about.st_size, about.st_mtime_ns]


def _row(file: Path, answer: Prediction, mark: list) -> dict:
    row = {"file": str(file), "top": list(map(list, answer)), "mark": mark}
    if answer.rejected:
        row["none"] = True
    return row if answer.names is None else row | {"set": list(answer.names)}


def _finished(part: Path, job: dict) -> dict[str, dict]:
    """The rows of an earlier run of the same job, by file; none of another's or of a half-written
    line.
    """
    try:
        first, *lines = part.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != job:
            return {}
    except (OSError, ValueError):
        return {}
    done = {}
    for line in lines:
        try:
            row = json.loads(line)
            done[row["file"]] = row | {"top": [(str(name), float(p)) for name, p in row["top"]]}
        except (ValueError, TypeError, KeyError):  # the line that a kill cut off
            continue
    return done


@contextmanager
def _kept(part: Path, job: dict, done: dict[str, dict]):
    """The function that adds finished rows to the file beside the table, for the next run to go on
    from.
    """
    def guarded(write):
        try:
            return write()
        except OSError as error:
            raise unwritten(part, error, "give the same command again, which goes on from there"
                            ) from error

    with whole(part) as fresh:  # without what a kill cut off
        fresh.write_text("".join(json.dumps(row) + "\n" for row in (job, *done.values())),
                         encoding="utf-8")
    with part.open("a", encoding="utf-8") as file:
        def keep(rows: list[dict]) -> None:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
        yield lambda rows: guarded(lambda: keep(rows))


@contextmanager
def _moving(total: int, done: int, shown: bool):
    """A bar with its rate; gives the function that moves it on."""
    from rich.progress import MofNCompleteColumn
    start, before = time.monotonic(), done
    with bar(MofNCompleteColumn(), "{task.fields[rate]}", shown=shown) as progress:
        task = progress.add_task("pictures", total=total, completed=done, rate="")

        def move(many: int) -> None:
            progress.advance(task, many)
            rate = (progress.tasks[0].completed - before) / max(time.monotonic() - start, 1e-3)
            progress.update(task, rate=f"{rate:.{0 if rate > 10 else 1}f} images/s")

        yield move


def _write(out: Path, rows: list[dict], top: int, classifier: Classifier) -> None:
    """The table, whole or not at all."""
    calibration = classifier.calibration
    rejects = calibration is not None and calibration.threshold is not None
    sets = calibration is not None and calibration.limits is not None
    with whole(out) as partial, partial.open("w", encoding="utf-8", newline="",
                                             errors="surrogateescape") as file:
        if out.suffix.lower() == ".jsonl":
            for row in rows:
                about = {"file": row["file"], "top": [{"class": name, "probability": p}
                                                      for name, p in row["top"]]}
                about |= {"none_of_these": row.get("none", False)} if rejects else {}
                about |= {"set": row["set"]} if sets else {}
                file.write(json.dumps(about) + "\n")
            return
        table, places = csv.writer(file), range(1, min(top, len(classifier.classnames)) + 1)
        table.writerow(["file", *(f"{what}_{k}" for k in places for what in ("class", "probability")),
                        *["none_of_these"] * rejects, *["set"] * sets])
        for row in rows:
            found = [cell for name, p in row["top"] for cell in (name, f"{p:.6g}")]
            table.writerow([row["file"], *found, *[str(row.get("none", False)).lower()] * rejects,
                            *[" | ".join(row.get("set", ()))] * sets])


