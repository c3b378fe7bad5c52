"""Commands that run many fits: tables, a CSV and a picture."""
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..banks import FeatureBank
from ..methods import METHODS, CoOp
from .app import app, console, names, numbers


@app.command()
def compare(
    banks: Annotated[str, typer.Option(help="Names or paths of banks, with commas.")] = "caltech101,pacs-cartoon,dtd10",
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}; with commas.")] =
        "zero-shot,linear-probe,coop,clip-adapter",
    shots: Annotated[str, typer.Option(help="Training images per class.")] = "1,2,4,8,16",
    seeds: Annotated[str, typer.Option(help="Which few-shot draws.")] = "1,2,3",
    backbone: Annotated[str, typer.Option(help="Whose banks to load.")] = "pocket",
    out: Annotated[Path, typer.Option(help="The CSV; the picture goes beside it as .png.")] = Path("results/compare.csv"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep the finished runs of --out and do the rest.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.")] = -1,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Take what there is of a class with too few images.")] =
        False,
):
    """Compare methods: every bank × method × shots × seed, as a table per bank, a CSV and a picture.

    Fitted on the few shots, selected on min(shots, 4) validation images a class, judged once on the whole test split.

    Example: `clip-adapter-lite compare --banks rsscn7 --shots 1,16 --seeds 1,2,3`
    """
    from .. import plots
    from ..compare import compare as run
    from ..compare import pending, summarise
    loaded = [FeatureBank.load(name, backbone) for name in names(banks)]
    study = dict(banks=loaded, methods=names(methods), shots=numbers(shots, "--shots"), seeds=numbers(seeds, "--seeds"),
                 allow_fewer=allow_fewer)
    console.print(pending(**study, out=out if resume else None))
    try:
        table = run(**study, out=out, resume=resume, jobs=jobs, progress=True)
    except KeyboardInterrupt:
        console.print(f"\nStopped. The finished runs are in {out}: the same command with --resume goes on from there.")
        raise typer.Exit(130) from None
    summary = summarise(table)
    for bank in loaded:
        here = summary[(summary.dataset == bank.dataset)]
        console.print(accuracy_table(here, f"{bank.dataset}: test accuracy in %, mean ± standard deviation of "
                                           f"{table.seed.nunique()} seeds", plots.features_of(bank.backbone)))
    for line in notes(table, out):
        console.print(line, highlight=False)
    picture = plots.save(plots.accuracy_over_shots(table), out.with_suffix(".png"))
    console.print(f"\nWrote {out} ({len(table)} runs), {out.with_suffix('.json')} (what they were computed from) and "
                  f"{picture}.", highlight=False)


def accuracy_table(summary, title: str, features: str) -> Table:
    """One bank's accuracies: a row per method, a column per number of shots."""
    shots = sorted(summary.shots.unique())
    table = Table(title=title, caption=f"features: {features}", title_justify="left", caption_justify="left")
    table.add_column("method", no_wrap=True)
    for s in shots:
        table.add_column("1 shot" if s == 1 else f"{s} shots", justify="right")
    for method, rows in summary.groupby("method", sort=False):
        cells = rows.set_index("shots")
        table.add_row(method, *(f"{100 * cells['mean'][s]:.1f}±{100 * cells['std'].fillna(0)[s]:.1f}" for s in shots))
    return table


def notes(table, out: Path) -> list[str]:
    """What a reader of the tables must know beside them: steps, and how often ties decided the ratio."""
    import json
    steps = table[(table.steps > 0) & ~table.method.str.startswith("linear-probe")].groupby("method", sort=False).steps
    lines = [f"{method}: {low}{f' to {high}' if high > low else ''} optimiser steps"
             f"{f', M = {CoOp.context_length} context vectors' if method == CoOp.name else ''}."
             for method, low, high in zip(steps.min().index, steps.min(), steps.max())]
    details = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["details"]
    tied = [d["tied"] for d in details.values() if "tied" in d]
    if tied:
        lines.append(f"Of {len(tied)} searches on validation, {sum(t > 1 for t in tied)} had several ratios tied on "
                     "accuracy, and the lower cross-entropy decided.")
    return lines
