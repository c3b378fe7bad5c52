"""Many runs, one row each: every bank × method × shots × seed, resumable, on the engine asked for
(`engines.py`).
"""
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..banks import FeatureBank
from ..devices import threads
from ..episodes import Episode
from ..errors import BankError, one_line
from ..files import begins, located, may_write, parsed, unwritten, versions, whole
from ..methods import Classifier, CLIPAdapter, Method, method_named
from ..naming import count, showable
from ..progress import bar
from ..values import shown, whole_number
from .engines import finished

COLUMNS = ("dataset", "backbone", "method", "shots", "seed", "labelled", "accuracy", "val_accuracy",
           "alpha", "steps", "seconds", "parameters")
KEY = COLUMNS[:5]
PROTOCOLS = {True: "fit on the support set; selection on min(shots, 4) validation images a class; "
                   "accuracy on the whole test split, used once",
             False: "fit and selection on the support set alone; accuracy on the whole test split, "
                    "used once"}


@dataclass(frozen=True, eq=False)
class Run:
    """One fit to be done and judged.

    validation: False takes the validation images away. settings: a sweep's grid values, which become
    columns of its row.
    """
    bank: FeatureBank
    method: Method
    shots: int
    seed: int
    allow_fewer: bool = False
    validation: bool = True
    settings: Mapping = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        """What tells this run from the others: dataset, backbone, method, shots, seed."""
        return self.bank.dataset, self.bank.backbone, self.method.label, self.shots, self.seed

    def __call__(self) -> tuple[tuple, dict, dict]:
        """(key, row, details) of the finished run; one thread, the fastest for these small matrices.

        A run that this bank or method does not allow has no row, and says why in its details.
        """
        with threads(1):
            try:
                episode = self.episode()
                return self._row(episode, self.method.fit(episode))
            except ValueError as error:
                return self.key, {}, {"failed": one_line(error)}

    def episode(self) -> Episode:
        """What is fitted to and judged on."""
        episode = self.bank.episode(self.shots, self.seed, allow_fewer=self.allow_fewer)
        return episode if self.validation else episode.shots_only()

    def _row(self, episode: Episode, fitted: Classifier) -> tuple[tuple, dict, dict]:
        accuracy = fitted.accuracy(episode.test)
        row = dict(zip(KEY, self.key), labelled=self.method.labelled(episode), accuracy=accuracy,
                   val_accuracy=fitted.val_accuracy, alpha=fitted.alpha, steps=fitted.steps,
                   seconds=round(fitted.seconds, 4), parameters=fitted.parameters)
        return self.key, row | self.shown, fitted.details

    @property
    def alike(self) -> tuple:
        """What runs have in common whose adapters may be trained as one: all but seed and ratios."""
        settings = {f.name: getattr(self.method, f.name) for f in fields(self.method)}
        ratios = {name: "a number" for name in ("alpha", "beta")
                  if isinstance(settings.get(name), (int, float))}
        return (id(self.bank), self.shots, self.allow_fewer, self.validation, self.method.name,
                repr(settings | ratios))

    @staticmethod
    def together(runs: Sequence["Run"]) -> Iterator[tuple[tuple, dict, dict]]:
        """`run()` of each; CLIP-Adapters that are `alike` train as one. Where one cannot be done,
        each is tried alone, and says so itself.
        """
        done = []
        if len(runs) > 1 and all(isinstance(run.method, CLIPAdapter) for run in runs):
            try:
                with threads(1):
                    episodes = [run.episode() for run in runs]
                    fits = [(run.method, episode) for run, episode in zip(runs, episodes)]
                    done = [run._row(episode, fitted) for run, episode, fitted
                            in zip(runs, episodes, CLIPAdapter.fit_many(fits))]
            except ValueError:
                done = []
        yield from done or (run() for run in runs)

    @property
    def shown(self) -> dict:
        """The settings as columns; a word such as "val" does not take the place of a number of
        COLUMNS.
        """
        return {k: v for k, v in self.settings.items() if k not in COLUMNS
                or isinstance(v, (int, float))}


def plan(banks: Iterable[FeatureBank], methods: Iterable[str | Method], shots: Iterable[int],
         seeds: Iterable[int], *, allow_fewer: bool = False, validation: bool = True) -> list[Run]:
    """All runs of a study, checked before any work: methods known, nothing twice, every bank has
    the shots, no method lacks the validation images that it cannot do without.

    One bank, method, number of shots or seed is a list of one. Raises ValueError or BankError,
    naming what is wrong.
    """
    methods = [method_named(m) if isinstance(m, str) else m for m in several(methods)]
    if wrong := [m for m in methods if not isinstance(m, Method)]:
        raise ValueError("methods must be labels such as 'zero-shot' or methods such as "
                         f"ZeroShot(); got {shown(wrong[0])}.")
    banks, shots, seeds = cells(banks, shots, seeds)
    return checked([Run(b, m, s, seed, allow_fewer, validation)
                    for b in banks for m in methods for s in shots for seed in seeds])


def several(given) -> list:
    """The things given, of which there may be one alone."""
    alone = isinstance(given, str) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0
    return [given] if alone else list(given)


def cells(banks, shots, seeds) -> tuple[list[FeatureBank], list[int], list[int]]:
    """Banks, shots and seeds of a study as lists. Raises BankError for what is no bank and no whole
    number.
    """
    banks = several(banks)
    if wrong := [bank for bank in banks if not isinstance(bank, FeatureBank)]:
        raise BankError(f"banks must be feature banks; got {shown(wrong[0])}, so give "
                        "FeatureBank.load(name).")
    return (banks, [whole_number(s, "shots") for s in several(shots)],
            [whole_number(s, "seeds") for s in several(seeds)])


def checked(runs: list[Run]) -> list[Run]:
    """The runs themselves, unless there are none, one is there twice, or a bank has too few shots
    for one or no images to judge it on.
    """
    if not runs:
        raise ValueError("Nothing to run: give at least one bank, method, number of shots and seed.")
    seen = set()
    for run in runs:
        if run.key in seen:
            raise ValueError(f"The run {run.key} is asked for twice; name each bank, method, shots "
                             "and seed once.")
        seen.add(run.key)
    for run in runs:
        if not len(run.bank.splits["test"]):
            raise BankError(f"{run.bank.dataset} has no test images, so nothing fitted to it could "
                            "be judged; leave that bank out, or build it with some.")
        if not run.validation and run.method.needs_validation:
            chosen = [f.name for f in fields(run.method) if getattr(run.method, f.name) == "val"]
            raise ValueError(f"{run.method.label} chooses {' and '.join(chosen)} on validation "
                             "images, which shots only have not; give a number, as in "
                             f"{run.method.name}({chosen[0]}=1), or leave that method out.")
        if not run.allow_fewer or run.shots < 1:
            run.bank.check_shots(run.shots)
    return runs


def read_rows(path: Path, columns: Sequence[str] = COLUMNS) -> dict[tuple, dict]:
    """The finished rows of a results CSV by key; a last line that was cut off in the writing is
    dropped.

    Raises ValueError, naming the file, for one of something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark there
    except UnicodeDecodeError:
        text = ""
    if text.split("\n", 1)[0].strip() != ",".join(columns):
        raise ValueError(f"{path} is not a file of results, whose first line is "
                         f"{','.join(columns)}; give another --out (out=…).")
    rows = {}
    for number, row in enumerate(csv.DictReader(text[:text.rfind("\n") + 1].splitlines()), 2):
        try:
            row["shots"], row["seed"] = int(row["shots"]), int(row["seed"])
            float(row["accuracy"])
            if None in row or None in row.values():
                raise ValueError("it has more or fewer columns")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: row {number} is not one of results ({one_line(error)}); mend "
                             "or delete that line, or give another --out (out=…).") from error
        rows[tuple(row[k] for k in KEY)] = row
    return rows


def about_results(path: Path) -> dict:
    """What the JSON beside a results CSV says; {} if there is none, or one of something else."""
    try:
        found = parsed(path.read_bytes())
    except (OSError, ValueError):
        return {}
    known = isinstance(found, dict) and found.keys() >= {"banks", "methods", "details"}
    return found if known else {}


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
    """Write a results CSV, whole or not at all."""
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


class Results:
    """The CSV of a study: rows are appended as runs finish; a JSON beside it says what they were
    computed from.

    Opening an existing file with resume=True keeps its finished rows (a half-written last line is
    dropped) and raises ValueError if it belongs to other banks or settings; without, the old file
    is kept as NAME.previous.csv. Raises OSError if one of these files is no study's.
    """

    def __init__(self, path: Path, runs: Sequence[Run], resume: bool, columns: Sequence[str] = COLUMNS):
        path = located(path)
        # the table's companions have these names
        if path.is_dir() or path.suffix.lower() in (".json", ".png"):
            raise ValueError(f"{path} cannot be the results' table, beside which a .json and a "
                             f".png are written; give a file such as {path.with_suffix('.csv')}.")
        self.path, self.about_path, self.columns = path, path.with_suffix(".json"), tuple(columns)
        self.about = {
            "banks": {f"{r.bank.dataset} ({r.bank.backbone})": r.bank.hash for r in runs},
            "methods": {r.method.label: repr(r.method) for r in runs},
            "protocol": PROTOCOLS[all(run.validation for run in runs)],
            "versions": versions(), "details": {}}
        self.rows: dict[tuple, dict] = {}
        previous = path.with_suffix(".previous.csv")
        for table in [] if resume else [path, previous]:  # `read_rows` says what else it is
            may_write(table, lambda there: begins(there, ",".join(KEY)), "table of results")
        may_write(self.about_path, lambda there: bool(about_results(there)), "description of results")
        if path.exists() and resume:
            self._resume()
        elif path.exists():
            path.replace(previous)
        self._rewrite(self.rows.values())

    def _resume(self) -> None:
        before = about_results(self.about_path)
        if before.get("protocol", self.about["protocol"]) != self.about["protocol"]:
            raise ValueError(f"{self.path} was computed by another protocol ({before['protocol']}), so "
                             "its rows cannot be mixed with new ones; give another --out.")
        for what in ("banks", "methods"):
            for name, value in self.about[what].items():
                if before.get(what, {}).get(name, value) != value:
                    raise ValueError(f"{self.path} was computed with another '{name}' than "
                                     "today's, so its rows cannot be mixed with new ones; leave "
                                     "out --resume (resume=True), or give another --out (out=…).")
            self.about[what] = before.get(what, {}) | self.about[what]
        self.about["details"] = before.get("details", {})
        self.rows = read_rows(self.path, self.columns)

    def add(self, key: tuple, row: dict, details: dict) -> None:
        """Append a finished run; on disk when this returns."""
        self.rows[key] = row
        told = {k: v for k, v in details.items() if k != "scores"}
        self.about["details"][" / ".join(map(str, key))] = told
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritten(self.path, error, "go on with --resume (resume=True)") from error

    def finish(self, runs: Sequence[Run]) -> None:
        """Put the rows in the order of the plan (rows of earlier studies in the file go first)."""
        planned = [run.key for run in runs]
        kept = [key for key in self.rows if key not in set(planned)]
        self._rewrite(self.rows[key] for key in kept + planned if key in self.rows)

    def _rewrite(self, rows: Iterable[dict]) -> None:
        write_rows(self.path, self.columns, rows)
        with whole(self.about_path) as partial:
            partial.write_text(json.dumps(self.about, indent=1, sort_keys=True), encoding="utf-8")


def execute(runs: Sequence[Run], results: Results | None = None, *, progress: bool = False,
            **engine) -> list[dict]:
    """Rows of all runs, in their order; those that `results` already has are not run again.

    engine: jobs, engine and address of `engines.finished`. Rows are the same for any of them.
    Raises BankError, with what `results` keeps, for runs that a bank or method does not allow, once
    the others are done; without `results` at once.
    """
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn
    rows = dict(results.rows) if results else {}
    left = [run for run in runs if run.key not in rows]
    failed: dict[tuple, str] = {}
    with bar(MofNCompleteColumn(), TimeElapsedColumn(), shown=progress) as display:
        task = display.add_task("runs", total=len(runs), completed=len(runs) - len(left))
        for key, row, details in finished(left, **engine):
            if row:
                rows[key] = row
                if results:
                    results.add(key, row, details)
            else:
                failed[key] = details["failed"]
                if not results:
                    raise BankError(f"{failed[key]}.")
            display.update(task, advance=1, description=showable(f"{key[0]} · shots {key[3]}"))
    if results:
        results.finish(runs)
    if failed:
        first = {why: key[2] for key, why in reversed(failed.items())}  # of each reason, whose run
        why = "; ".join([f"{first[why]}: {why}" for why in dict.fromkeys(failed.values())][:5])
        raise BankError(f"{len(failed)} of {count(len(runs), 'run')} could not be done ({why}); the "
                        f"others are kept in {results.path}, so leave those out and go on with "
                        "--resume (resume=True).")
    # a row that was read back from a file holds text
    return [rows[run.key] | run.shown for run in runs]


def tidy(table):
    """The table with number columns as numbers (a resumed CSV row holds text, and "" where there is
    no value).
    """
    import pandas
    for column in COLUMNS[3:]:
        table[column] = pandas.to_numeric(table[column].replace("", None))
    return table
