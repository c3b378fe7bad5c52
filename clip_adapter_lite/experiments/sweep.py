"""Sweeps: one method over a grid of its settings, on every bank, with every number of shots and
seed.
"""
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from ..banks import FeatureBank
from ..evaluation import need_runs
from ..methods import CLIPAdapter, Method, method_named, with_settings
from ..values import plain, shown
from .engines import check_engine
from .runs import COLUMNS, Results, Run, cells, checked, execute, several, tidy


def plan_sweep(banks: Iterable[FeatureBank], base: str | Method, grid: Mapping[str, Sequence],
               shots: Iterable[int], seeds: Iterable[int], *, allow_fewer: bool = False) -> list[Run]:
    """All runs of a sweep, checked before any work. Raises ValueError or BankError, naming what is
    wrong.
    """
    base = method_named(base) if isinstance(base, str) else base
    if not isinstance(base, Method) or not isinstance(grid, Mapping):
        raise ValueError("A sweep takes a method and a grid, such as CLIPAdapter() and {'alpha': "
                         "[0, 0.2]}; got "
                         f"{shown(base)} and {shown(grid)}.")
    banks, shots, seeds = cells(banks, shots, seeds)
    points = [dict(zip(grid, values))
              for values in product(*(map(plain, several(values)) for values in grid.values()))]
    return checked([Run(bank, _method_at(base, point), s, seed, allow_fewer, settings=point)
                    for bank in banks for point in points for s in shots for seed in seeds])


def _method_at(base: Method, point: Mapping) -> Method:
    """The method at a point of the grid. A text adapter's ratio is β: it follows the grid's α
    unless it has values there.
    """
    branch = point.get("branch", getattr(base, "branch", None))
    if isinstance(base, CLIPAdapter) and branch != "visual" and "alpha" in point:
        point = {"beta": point["alpha"], **point}
    return with_settings(base, point)


def sweep_columns(grid: Iterable[str]) -> tuple[str, ...]:
    """The columns of a sweep's table: those of `compare`, then the grid's settings that are not
    among them.
    """
    return COLUMNS + tuple(key for key in grid if key not in COLUMNS)


def sweep(banks: Iterable[FeatureBank], base: str | Method = CLIPAdapter(),
          grid: Mapping[str, Sequence] | None = None, shots: Iterable[int] = (16,),
          seeds: Iterable[int] = (1, 2, 3), *, jobs: int = -1, engine: str = "joblib",
          address: str | None = None, out: str | Path | None = None, resume: bool = False,
          progress: bool = False, allow_fewer: bool = False):
    """Fit `base` with every combination of the grid's settings; a DataFrame with one row per run.

    grid: setting → values, such as {"alpha": [0, 0.2, 1], "reduction": [1, 4], "branch": ["visual",
    "text"]}; by default α from 0 to 1 in steps of a tenth. Columns are those of `compare` and one
    for each setting; `alpha` is the ratio that was asked for, on whichever branch there is (a text
    adapter's β follows it, unless β is in the grid too).
    jobs, engine, address, out, resume, allow_fewer: as in `compare`, and rows come in the same
    order whatever they are.

    accuracy is on the test split: to choose a setting look at val_accuracy. Raises ValueError for
    an unknown setting.
    """
    import pandas
    grid = grid or {"alpha": [round(0.1 * i, 1) for i in range(11)]}
    runs = plan_sweep(banks, base, grid, shots, seeds, allow_fewer=allow_fewer)
    check_engine(engine, jobs, address)
    columns = sweep_columns(grid)
    results = Results(Path(out), runs, resume, columns) if out else None
    rows = execute(runs, results, progress=progress, jobs=jobs, engine=engine, address=address)
    return tidy(pandas.DataFrame(rows, columns=columns))


def chosen_on_validation(table, grid: Iterable[str], banks: Iterable[FeatureBank] = ()):
    """The setting of each dataset, backbone and number of shots with the highest mean validation
    accuracy over seeds.

    grid: the settings. Raises ValueError for a table without runs, or without the columns, or with a
    bank that `banks` lacks. Of equals the first in the order of the table. One row each: the
    settings, val_accuracy, accuracy (means over seeds) and best_accuracy, the highest mean test
    accuracy of any setting: how much choosing on test would flatter.
    banks: those of the table; with them there is a column `labelled`, the labelled images a class
    that the choice took: the shots, and the validation images whatever the setting (those columns
    of `sweep` say what a fit looked at, which at a fixed ratio is the shots alone).
    """
    cell, grid = ["dataset", "backbone", "shots"], several(grid)
    need_runs(table, [*cell, *grid, "accuracy", "val_accuracy"])
    means = table.groupby([*cell, *grid], sort=False)[["val_accuracy", "accuracy"]].mean().reset_index()
    # a bank without validation images has nothing to choose by
    means = means.dropna(subset="val_accuracy")
    groups = means.groupby(cell, sort=False)
    chosen = means.loc[groups["val_accuracy"].idxmax()].set_index(cell)
    chosen = chosen.assign(best_accuracy=groups["accuracy"].max()).reset_index()
    if banks := several(banks):
        chosen["labelled"] = [_labelled(banks, *row) for row in chosen[cell].itertuples(index=False)]
    return chosen


def _labelled(banks: list[FeatureBank], dataset: str, backbone: str, shots: int) -> float:
    """Support and validation images a class, a mean over classes; any seed draws as many."""
    bank = next((bank for bank in banks if isinstance(bank, FeatureBank)
                 and (bank.dataset, bank.backbone) == (dataset, backbone)), None)
    if bank is None:
        raise ValueError(f"The table has runs on '{dataset}' with the backbone '{backbone}', which is "
                         "not among banks; give the banks that were swept, or none.")
    episode = bank.episode(int(shots), allow_fewer=True)
    return (len(episode.support) + len(episode.val)) / len(episode.classnames)
