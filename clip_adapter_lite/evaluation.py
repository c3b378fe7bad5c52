"""What a classifier's logits are worth: accuracy, calibration, and whether one method is really
above another.

Tensors in, numbers and small tables out; nothing here knows of banks, methods or files.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import one_line
from .naming import count
from .splits import predicted, share_right
from .values import LABELS, as_tensor, is_whole, whole_number

# what two runs share when they differ in the method alone
PAIR = ["dataset", "backbone", "shots", "seed"]
BANK = PAIR[:2]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction, in [0, 1], of rows of logits [N, C] whose highest entry is their label's
    (labels [N]).

    Of equal highest entries the first counts. Scores and labels may be arrays or lists. Raises
    ValueError on wrong shapes, scores without a finite highest entry, and labels that are no
    integers or outside 0 … C - 1.
    """
    return share_right(*_checked(logits, labels))


def per_class_accuracy(logits: Tensor, labels: Tensor, classes: int | None = None) -> Tensor:
    """Accuracy [C], each in [0, 1], of each class's images (its recall); NaN for a class without
    images.

    classes: how many classes there are, if not as many as the logits have columns; images of a
    class that has no column count as wrong. Raises ValueError as `accuracy` does.
    """
    classes = None if classes is None else _count(classes, "classes")
    logits, labels = _checked(logits, labels, classes)
    classes = classes or logits.shape[1]
    right = torch.bincount(labels[predicted(logits) == labels], minlength=classes)
    return right.double() / torch.bincount(labels, minlength=classes)


def reliability_curve(probabilities: Tensor, labels: Tensor, bins: int = 15):
    """Confidence against accuracy, over `bins` equal-width bins of the highest probability of each row.

    probabilities: [N, C], labels: [N]. Returns a DataFrame with one row per non-empty bin, in
    rising order: confidence (mean in the bin), accuracy, count. As in Guo et al. 2017 (arXiv
    1706.04599) bin m holds ((m - 1)/bins, m/bins]: a confidence exactly on an edge belongs to the
    bin below it, and 1.0 to the last; "exactly" means equal to m/bins rounded to the dtype of the
    probabilities. Raises ValueError as `accuracy` does, and if rows do not sum to 1.
    """
    import pandas
    bins = _count(bins, "bins")
    probabilities, labels = _checked(probabilities, labels)
    sums = probabilities.double().sum(1)
    # 0.01: half precision over 1000 classes
    wrong = ~((sums - 1).abs() <= 0.01) | (probabilities < 0).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"These are not probabilities: row {row} sums to {sums[row]:.3g} with "
                         f"lowest entry {probabilities[row].min():.3g} but must hold no negative "
                         "entry and sum to 1; give the softmax of the logits, as "
                         "classifier.probabilities(features) does.")
    confidence, predicted = probabilities.max(1)
    inner_edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(confidence.dtype)
    points = pandas.DataFrame({"confidence": confidence.double(),
                               "accuracy": (predicted == labels).double(),
                               "bin": torch.bucketize(confidence.double(), inner_edges.double())})
    grouped = points.groupby("bin")
    return grouped[["confidence",
                    "accuracy"]].mean().assign(count=grouped.size()).reset_index(drop=True)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (top label, equal-width bins), in [0, 1]: 0 if accuracy is what
    confidence promises.

    The mean of |accuracy - confidence| over the bins of `reliability_curve`, weighted by their
    counts (Guo et al. 2017). It depends on `bins`, and over few images noise alone keeps it above
    0. Raises ValueError as `reliability_curve`.
    """
    curve = reliability_curve(probabilities, labels, bins)
    return float(((curve["accuracy"] - curve["confidence"]).abs() * curve["count"]).sum()
                 / curve["count"].sum())


def _checked(scores: Tensor, labels: Tensor, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Scores [N, C] and labels [N] as tensors on the CPU (what is made of them are numbers and
    small tables).

    Raises ValueError unless they fit together.
    """
    must = "Expected scores of shape [N, C] and N integer labels with N at least 1"
    do = "give one row of scores for each image"
    scores, labels = as_tensor(scores, must, do).cpu(), as_tensor(labels, must, LABELS).cpu()
    paired = scores.ndim == 2 and scores.numel() and labels.shape == scores.shape[:1]
    if not paired or not is_whole(labels) or scores.is_complex():
        raise ValueError(f"{must}; got {list(scores.shape)} and {labels.dtype} of shape "
                         f"{list(labels.shape)}; {do}.")
    predicted(scores)  # raises
    labels, classes = labels.long(), classes or scores.shape[1]
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"Labels run from {int(labels.min())} to {int(labels.max())} but there "
                         f"are {classes} classes, so they must lie in 0 … {classes - 1}; number "
                         "the labels as the columns of the scores.")
    return scores, labels


def _count(value, what: str) -> int:
    """A number of bins or classes. Raises ValueError unless it is a whole number from 1."""
    number = whole_number(value, what)
    if number < 1:
        raise ValueError(f"{what} must be at least 1; got {number}.")
    return number


# ── is one method above another? ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Comparison:
    """Method a against method b over paired runs.

    difference: mean of a - b, in the metric's units; low, high: its 95 % interval; banks, runs: how
    many banks and pairs of runs it rests on. Printed in percentage points, in the direction of the
    verdict.
    """
    a: str
    b: str
    difference: float
    low: float
    high: float
    banks: int
    runs: int

    @property
    def verdict(self) -> str:
        """"a above b" if low > 0, "b above a" if high < 0, else "cannot tell": a rule fixed before
        any result.
        """
        if self.low > 0:
            return f"{self.a} above {self.b}"
        return f"{self.b} above {self.a}" if self.high < 0 else "cannot tell"

    def __str__(self):
        found = self.verdict if self.low > 0 or self.high < 0 else f"cannot tell {self.a} from {self.b}"
        mean, low, high = (self.difference, self.low, self.high) if self.high >= 0 else \
                          (-self.difference, -self.high, -self.low)
        numbers = (f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
                   f"{count(self.banks, 'bank')}, {count(self.runs, 'run')}")
        line = f"{found}: {numbers}"  # longer ones wrap within words where notebooks are read
        return line if len(line) <= 96 else f"{found}:\n      {numbers}"


def paired_bootstrap(table, a: str, b: str, *, metric: str = "accuracy", resamples: int = 10_000,
                     seed: int = 0) -> Comparison:
    """Is method a above method b? The mean of a - b over paired runs, with a 95 %
    hierarchical-bootstrap interval.

    table: a DataFrame as `compare` returns it, one row per run; runs of a and b are paired by
    dataset, backbone, shots and seed. Banks (dataset and backbone) are resampled with replacement,
    and in each of them seeds, a seed with all its shots: runs of one bank, and runs of one seed,
    are not independent (Davison and Hinkley 1997, section 3.8). Every pair weighs the same. The
    verdict is fixed beforehand by the interval, see `Comparison.verdict`.

    With a single bank only its seeds are resampled: such a verdict is about that bank, not about
    others. Bootstrap intervals over few things are too narrow. On simulated normal differences (3
    seeds a bank; spread of banks one to five times that of seeds) they held the truth about 91 to
    94 % of the time with 12 banks, 85 to 88 % with 5, 75 to 84 % with 3; for one bank 90 % with 10
    seeds, 83 % with 5, 75 % with 3.

    Raises ValueError if a method or column is not in the table, a run is there twice, has no
    partner or has no finite metric, or if there is only one bank with one seed, which leaves
    nothing to resample.
    """
    import numpy as np
    resamples = _count(resamples, "resamples")
    pairs = _differences(table, a, b, metric)
    # Only sums and counts enter the mean, so the shots of a seed can be added up before resampling.
    seeds = pairs.groupby(level=[*BANK, "seed"], dropna=False, observed=True).agg(["sum", "count"])
    banks = [group.to_numpy() for _, group in seeds.groupby(level=BANK, dropna=False, observed=True)]
    if len(seeds) == 1:
        raise ValueError("One bank with one seed leaves nothing to resample, so no interval can "
                         f"be given for '{a}' and '{b}'; run more seeds (better ten), or more banks.")
    rng = np.random.default_rng(seed)
    # [resamples, banks]
    times = rng.multinomial(len(banks), np.full(len(banks), 1 / len(banks)), size=resamples)
    totals = np.zeros((resamples, 2))
    for bank, drawn in zip(banks, times.T):
        # A bank drawn k times gives k times its number of seeds, each drawn evenly: one multinomial
        # for all copies.
        totals += rng.multinomial(drawn * len(bank), np.full(len(bank), 1 / len(bank))) @ bank
    # Rounded, so that a difference of exactly nothing is not called one because of its last bit.
    means = np.sort((totals[:, 0] / totals[:, 1]).round(12))
    # as many at either end, so that swapping a and b mirrors the interval exactly
    cut = int(0.025 * resamples)
    return Comparison(a, b, difference=float(pairs.mean()), low=float(means[cut]),
                      high=float(means[-1 - cut]), banks=len(banks), runs=len(pairs))


def _differences(table, a: str, b: str, metric: str):
    """The metric of a minus that of b, a Series indexed and sorted by PAIR; ValueError if runs do
    not pair up.
    """
    import numpy as np
    import pandas
    need_columns(table, (*PAIR, "method", metric))
    if metric in PAIR or not pandas.api.types.is_numeric_dtype(table[metric]) and len(table):
        raise ValueError(f"metric must be a column of numbers, such as accuracy; got '{metric}'.")
    for method in (a, b):
        if method not in set(table["method"]):
            raise ValueError(f"Method '{method}' is not in the table, which has "
                             f"{', '.join(sorted(set(table['method']))) or 'no runs'}; give one of "
                             "those, or run it too.")
    rows = table[table["method"].isin([a, b])].set_index([*PAIR, "method"])[metric].astype(float)
    _refuse(rows[rows.index.duplicated()], "there more than once in the table", "drop the copies")
    _refuse(rows[~np.isfinite(rows)], f"without a finite {metric}",
            "run them again or choose another metric")
    wide = rows.unstack("method")  # sorted, so the order of the table does not matter
    lonely = wide[wide.isna().any(axis=1)]
    if len(lonely) == len(wide):
        raise ValueError(f"No run of '{a}' has a run of '{b}' to be paired with (same "
                         f"{', '.join(PAIR)}); compare them on the same banks, shots and seeds.")
    _refuse(rows[rows.index.droplevel("method").isin(lonely.index)],
            f"without a partner to pair it with ('{a}' and '{b}' must share {', '.join(PAIR)})",
            "run the missing ones, or leave these out of the table")
    return wide[a] - wide[b]


def need_columns(table, columns) -> None:
    """Raise ValueError unless a table as of `compare` has these columns."""
    import pandas
    if not isinstance(table, pandas.DataFrame):
        raise ValueError(f"Expected the table of cal.compare, a DataFrame; got {type(table).__name__}.")
    if absent := [column for column in columns if column not in table]:
        raise ValueError(f"The table has no column '{absent[0]}' (it has "
                         f"{', '.join(map(str, table.columns))}); give the table of cal.compare "
                         "and one of its columns as metric.")


def need_runs(table, columns, finite: str | None = None) -> None:
    """Raise ValueError unless a table as of `compare` has runs, these columns, and numbers alone in
    `finite`.
    """
    import numpy as np
    import pandas
    need_columns(table, columns)
    if not len(table):
        raise ValueError("The table has no runs; give one with a row at least, as cal.compare "
                         "returns it.")
    if finite and not np.isfinite(pandas.to_numeric(table[finite], errors="coerce")).all():
        raise ValueError(f"The table holds runs without a finite {finite}; run them again, or "
                         "leave them out of it.")


def _refuse(runs, what: str, remedy: str) -> None:
    """Raise ValueError if there are such runs, with their number and the first of them."""
    if len(runs):
        first = ", ".join(f"{name} {value}" for name, value in zip(runs.index.names, runs.index[0]))
        are = "runs are" if len(runs) > 1 else "run is"
        raise ValueError(f"{len(runs)} {are} {what}, the first: {one_line(first)}; {remedy}.")
