"""The reference results: every bundled bank × every method × shots × seeds, computed once and
committed.

    make reference        # or: python -m clip_adapter_lite.making.reference

Resumable: finished runs are kept in results/reference.csv. Seeds 1 to 3 of everything first; then
seeds 4 to 10 of each bank, method and number of shots whose fit takes under a second (median of the
first three). `cal.reference()` reads them.
"""
import json
import subprocess
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from ..banks import FeatureBank, list_banks
from ..experiments.reference import MEASURED, RESULTS
from ..experiments.runs import COLUMNS, Results, Run, execute, write_rows
from ..files import BUNDLED, versions, whole

SHOTS, SEEDS, MORE_SEEDS, SECONDS = (1, 2, 4, 8, 16), (1, 2, 3), (4, 5, 6, 7, 8, 9, 10), 1.0
PROTOCOL = ("fit on the support set; selection on min(shots, 4) validation images a class; "
            "accuracy on the whole test split, used once; pocket CLIP's features "
            "(ImageNet-supervised image tower)")


def first_runs(banks) -> list[Run]:
    """Seeds 1 to 3 of everything that the banks have the shots for."""
    return [Run(bank, method, shots, seed) for bank, method, shots,
            seed in product(banks, MEASURED.values(), SHOTS, SEEDS)
            if shots <= bank.max_shots]


def further_runs(runs: list[Run], rows: list[dict]) -> list[Run]:
    """Seeds 4 to 10 of each bank, method and shots whose fits took under SECONDS, by the median of
    those that were run.
    """
    seconds: dict[tuple, list[float]] = {}
    for run, row in zip(runs, rows):
        seconds.setdefault((run.bank, run.method, run.shots), []).append(float(row["seconds"]))
    return [Run(*cell, seed) for cell, taken in seconds.items() if median(taken) < SECONDS
            for seed in MORE_SEEDS]


def commit() -> str:
    """The commit that the code is at, with "+changes" if files of the package differ from it."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True,
                              text=True).stdout.strip()
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "..") else "")


def main(
    work: Annotated[Path, typer.Option(help="Where finished runs are kept until all "
                                            "are.")] = Path("results/reference.csv"),
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.")] = -1,
):
    """Compute the reference results and write them beside the bundled banks."""
    banks = [FeatureBank.load(name) for name in list_banks()
             if (BUNDLED / "banks" / f"{name}.safetensors").exists()]
    # the slowest last, so that there is much to look at early
    banks.sort(key=lambda bank: len(bank.classnames))
    log = work.with_suffix(".commits")  # a resumed table may hold rows of several commits, and says so
    before = log.read_text(encoding="utf-8").split() if log.exists() and work.exists() else []
    runs = first_runs(banks)
    results = Results(work, runs, resume=True)
    log.write_text("\n".join(dict.fromkeys([*before, commit()])), encoding="utf-8")
    rows = execute(runs, results, jobs=jobs, progress=True)
    more = further_runs(runs, rows)
    runs, rows = runs + more, rows + execute(more, results, jobs=jobs, progress=True)
    places = [list_banks(), list(MEASURED)]
    order = sorted(range(len(runs)), key=lambda i: (places[0].index(runs[i].bank.dataset),
                                                   places[1].index(runs[i].method.label),
                                                   runs[i].shots, runs[i].seed))
    write_rows(RESULTS, COLUMNS, (rows[i] for i in order))
    about = {"commits": log.read_text(encoding="utf-8").split(), "protocol": PROTOCOL,
             "versions": versions(), "banks": {bank.dataset: bank.hash for bank in banks},
             "methods": {k: repr(m) for k, m in MEASURED.items()},
             "seeds": f"1 to {MORE_SEEDS[-1]} where a fit takes under {SECONDS:g} s, else 1 to "
                      f"{SEEDS[-1]}"}
    with whole(RESULTS.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=1), encoding="utf-8")
    print(f"wrote {RESULTS} ({len(runs)} runs)")


if __name__ == "__main__":
    typer.run(main)
