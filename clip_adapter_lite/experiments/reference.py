"""The committed reference results (`making/reference.py` computes them), and some of them computed
again.
"""
import json

from ..banks import FeatureBank
from ..evaluation import need_runs
from ..files import BUNDLED
from ..methods import CLAP, GDA, CLIPAdapter, CoOp, LinearAdapter, LinearProbe, TipAdapter, ZeroShot
from .runs import Run, execute, tidy

RESULTS = BUNDLED / "reference.csv"
MEASURED = {method.label: method for method in (
    ZeroShot(), LinearProbe(), CoOp(), CLIPAdapter(), CLIPAdapter(branch="text"),
    CLIPAdapter(branch="both"), CLIPAdapter(alpha="val"), CLIPAdapter(alpha=0.2),
    CLIPAdapter(alpha="learned"), TipAdapter(), TipAdapter(finetune=True), CLAP(),
    CLAP(constraint=False), GDA(), LinearAdapter())}


def reference():
    """The committed reference results, a DataFrame as `compare` returns it; `.attrs` says what they
    were computed from.

    Precomputed on two cores with the pocket CLIP's features: say so beside every figure. gtsrb has
    no 8 or 16 shots and grocery no 16. 10 seeds where a fit takes under a second, else 3.
    """
    import pandas
    table = tidy(pandas.read_csv(RESULTS))
    table.attrs = json.loads(RESULTS.with_suffix(".json").read_text(encoding="utf-8"))
    return table


def recompute(rows, jobs: int = -1):
    """Run some rows of `reference()` again; they come back with a column `recomputed`, the accuracy
    found now.

    On the machine type and versions of the reference the two are equal; others may differ by a few
    test images.

    Raises ValueError for a table without rows or columns, or a method the reference lacks, and
    FileNotFoundError for a bank that is not there.
    """
    need_runs(rows, ["dataset", "method", "shots", "seed"])
    if unknown := sorted(set(map(str, rows["method"])) - set(MEASURED)):
        raise ValueError(f"The reference has no method '{unknown[0]}' (it has "
                         f"{', '.join(MEASURED)}); give rows of cal.reference().")
    banks = {name: FeatureBank.load(name) for name in rows["dataset"].unique()}
    runs = [Run(banks[row.dataset], MEASURED[row.method], row.shots, row.seed)
            for row in rows.itertuples()]
    return rows.assign(recomputed=[row["accuracy"] for row in execute(runs, jobs=jobs)])
