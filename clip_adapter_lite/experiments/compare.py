"""Methods against each other: every bank × method × shots × seed, as one tidy table.

    clip-adapter-lite compare --banks caltech101,dtd10 --methods zero-shot,clip-adapter --shots 1,16
"""
from collections.abc import Iterable
from pathlib import Path

from ..banks import FeatureBank
from ..evaluation import need_runs
from ..methods import Method
from .engines import check_engine
from .runs import COLUMNS, Results, execute, plan, read_rows, tidy


def pending(banks, methods, shots, seeds, out: str | Path | None = None, *,
            allow_fewer: bool = False, validation: bool = True):
    """A table of the runs to be done, by bank and method; `out` is a CSV whose finished rows are
    not counted.
    """
    from rich.markup import escape
    from rich.table import Table
    runs = plan(banks, methods, shots, seeds, allow_fewer=allow_fewer, validation=validation)
    done = set(read_rows(Path(out))) if out and Path(out).exists() else set()
    left = [run for run in runs if run.key not in done]
    labels = list(dict.fromkeys(run.method.label for run in runs))
    table = Table("bank", *labels, title=f"{len(left)} of {len(runs)} runs to do", title_justify="left")
    for bank in dict.fromkeys(run.bank for run in runs):
        counts = [sum(run.bank is bank and run.method.label == label for run in left)
                  for label in labels]
        table.add_row(escape(bank.dataset), *map(str, counts))
    return table


def compare(banks: Iterable[FeatureBank],
            methods: Iterable[str | Method] = ("zero-shot", "linear-probe", "coop", "clip-adapter"),
            shots: Iterable[int] = (1, 2, 4, 8, 16), seeds: Iterable[int] = (1, 2, 3), *,
            out: str | Path | None = None, resume: bool = False, jobs: int = 1,
            engine: str = "joblib", address: str | None = None, progress: bool = False,
            allow_fewer: bool = False, validation: bool = True):
    """Fit every method on every bank with every number of shots and seed; a DataFrame with one row
    per run.

    methods: labels (a name, with settings as tables show them) or `Method` objects. Of banks,
    methods, shots and seeds, one alone need not be in a list. accuracy is on the whole test split,
    in [0, 1]; labelled: how many labelled images a class the fit looked at. Whatever a method
    selects, it selects on validation; validation=False takes those images away ("shots only").
    out: a CSV that rows are appended to as they finish; resume: skip the runs it already has.
    jobs: processes, -1 for one a core; engine: "joblib", or "ray" on this machine or the cluster at
    `address`.
    Raises BankError, before any work, if a bank cannot give that many shots (allow_fewer: take what
    a class has instead), ValueError for a method that cannot do without validation images.
    """
    import pandas
    runs = plan(banks, methods, shots, seeds, allow_fewer=allow_fewer, validation=validation)
    check_engine(engine, jobs, address)
    results = Results(Path(out), runs, resume) if out else None
    rows = execute(runs, results, progress=progress, jobs=jobs, engine=engine, address=address)
    return tidy(pandas.DataFrame(rows, columns=COLUMNS))


def summarise(table):
    """Mean and standard deviation (n - 1) of accuracy over seeds, and mean of `labelled` where it is
    there, by dataset, backbone, method and shots.

    Raises ValueError for a table without runs, without the columns, or with an accuracy that is no
    number.
    """
    by = ["dataset", "backbone", "method", "shots"]
    need_runs(table, [*by, "accuracy"], finite="accuracy")
    found = {name: ("accuracy", name) for name in ("mean", "std", "count")}
    if "labelled" in table:
        found["labelled"] = "labelled", "mean"
    return table.groupby(by, sort=False, dropna=False, observed=True).agg(**found).reset_index()
