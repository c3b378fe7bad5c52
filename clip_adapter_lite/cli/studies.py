"""Commands that run many fits: tables, a CSV and a picture."""
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..experiments.engines import ENGINES
from ..files import located
from ..methods import METHODS, CoOp, method_named
from ..methods.labels import listed, setting_value
from .app import AllowFewer, app, banks_listed, console, numbers, told

Banks = Annotated[str, typer.Option(help="Names or paths of banks, with commas.")]
Jobs = Annotated[int, typer.Option(help="Processes; -1 for one a core.")]
Engine = Annotated[str, typer.Option(help=f"{' or '.join(ENGINES)}: processes of this machine, or "
                                          "Ray's workers.")]
Address = Annotated[str, typer.Option(help="With --engine ray: a cluster's address, or auto; none "
                                           "starts Ray here.")]
Resume = Annotated[bool, typer.Option("--resume",
                                      help="Keep the finished runs of --out and do the rest.")]


@app.command()
def compare(
    banks: Banks = "caltech101,pacs-cartoon,dtd10",
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}; with commas. Settings "
                                              "stand in brackets, as in tables: "
                                              "tip-adapter(finetune=true).")] =
        "zero-shot,linear-probe,coop,clip-adapter",
    shots: Annotated[str, typer.Option(help="Training images per class.")] = "1,2,4,8,16",
    seeds: Annotated[str, typer.Option(help="Which few-shot draws.")] = "1,2,3",
    backbone: Annotated[str, typer.Option(help="Whose banks to load.")] = "pocket",
    out: Annotated[Path, typer.Option(help="The CSV; the picture goes beside it as "
                                           ".png.")] = Path("results/compare.csv"),
    resume: Resume = False,
    jobs: Jobs = -1,
    engine: Engine = "joblib",
    address: Address = "",
    allow_fewer: AllowFewer = False,
    shots_only: Annotated[bool, typer.Option("--shots-only",
                                             help="Take the validation images away: what a method "
                                                  "selects, it selects on the shots.")] = False,
):
    """Compare methods: every bank × method × shots × seed, as a table per bank, a CSV and a picture.

    Fitted on the few shots, selected on min(shots, 4) validation images a class, judged once on the
    whole test split. `labelled` counts the labelled images a class that a method looked at.

    Example: `clip-adapter-lite compare --banks rsscn7 --methods
        "clip-adapter,tip-adapter(finetune=true)" --shots 1,16`
    """
    from .. import plots
    from ..experiments.compare import compare as run
    from ..experiments.compare import pending, summarise
    out = located(out)
    loaded = banks_listed(banks, backbone)
    study = dict(banks=loaded, methods=listed(methods), shots=numbers(shots, "--shots"),
                 seeds=numbers(seeds, "--seeds"), allow_fewer=allow_fewer,
                 validation=not shots_only)
    console.print(pending(**study, out=out if resume else None))
    plots.may_save(out.with_suffix(".png"))
    with stoppable(out):
        table = run(**study, out=out, resume=resume, jobs=jobs, engine=engine,
                    address=address or None, progress=True)
    summary = summarise(table)
    seeds = table.seed.nunique()
    what = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    for bank in loaded:
        here = summary[(summary.dataset == bank.dataset)]
        console.print(accuracy_table(here, f"{escape(bank.dataset)}: test accuracy in %, {what}",
                                     plots.features_of(bank.backbone)))
    told(*notes(table, out))
    picture = plots.save(plots.accuracy_over_shots(table), out.with_suffix(".png"))
    told(f"\nWrote {out} ({len(table)} runs), {out.with_suffix('.json')} (what they were computed "
         f"from) and {picture}.")


@contextmanager
def stoppable(out: Path):
    """Ctrl-C ends the command with a sentence about how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        told(f"\nStopped. The finished runs are in {out}: the same command with --resume goes on "
             "from there.")
        raise typer.Exit(130) from None


def accuracy_table(summary, title: str, features: str) -> Table:
    """One bank's accuracies: a row per method, a column per number of shots; below it how many
    labelled images a class each method looked at, for which a terminal has no more columns.
    """
    shots, seen = sorted(summary.shots.unique()), {}
    for method, rows in summary.groupby("method", sort=False):
        counts = dict.fromkeys(f"{n:.3g}" for n in rows.sort_values("shots").labelled)
        seen.setdefault("/".join(counts), []).append(method)
    labelled = "; ".join(f"{counts} {', '.join(methods)}" for counts, methods in seen.items())
    table = Table(title=title, title_justify="left", caption_justify="left",
                  caption=f"features: {features}\nlabelled images a class: {labelled}")
    table.add_column("method", no_wrap=True)
    for s in shots:
        table.add_column("1 shot" if s == 1 else f"{s} shots", justify="right")
    for method, rows in summary.groupby("method", sort=False):
        cells = rows.set_index("shots")
        spread = [f"±{100 * cells['std'][s]:.1f}" if cells["count"][s] > 1 else "" for s in shots]
        table.add_row(method, *(f"{100 * cells['mean'][s]:.1f}{deviation}"
                                for s, deviation in zip(shots, spread)))
    return table


def notes(table, out: Path) -> list[str]:
    """What a reader of the tables must know beside them: steps, and how often ties decided the
    ratio.
    """
    import json
    steps = table[(table.steps > 0)
                  & ~table.method.str.startswith("linear-probe")].groupby("method", sort=False).steps
    lines = [f"{method}: {low}{f' to {high}' if high > low else ''} optimiser steps"
             f"{f', M = {CoOp.context_length} context vectors' if method == CoOp.name else ''}."
             for method, low, high in zip(steps.min().index, steps.min(), steps.max())]
    details = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["details"]
    tied = [d["tied"] for d in details.values() if "tied" in d]
    if tied:
        lines.append(f"Of {len(tied)} searches on validation, {sum(t > 1 for t in tied)} had several "
                     "settings that those images cannot tell apart.")
    return lines


def grid_axis(text: str) -> tuple[str, list]:
    """"alpha=0,0.2,val" → ("alpha", [0, 0.2, "val"]). Raises typer.BadParameter for anything else."""
    name, _, values = text.partition("=")
    if not name.strip() or not values.strip():
        raise typer.BadParameter("--grid takes a setting and its values, such as alpha=0,0.2,0.5; "
                                 f"got '{text}'.")
    return name.strip().replace("-", "_"), [setting_value(part) for part in listed(values)]


@app.command()
def sweep(
    banks: Banks = "dtd10",
    method: Annotated[str, typer.Option(help="Whose settings to vary: one of "
                                             f"{', '.join(METHODS)}.")] = "clip-adapter",
    grid: Annotated[list[str], typer.Option(help="A setting and its values; give the option once "
                                                 "for each setting.")] =
        ("alpha=0,0.2,0.4,0.6,0.8,1", "reduction=1,4,32"),
    shots: Annotated[str, typer.Option(help="Training images per class.")] = "16",
    seeds: Annotated[str, typer.Option(help="Which few-shot draws.")] = "1,2,3",
    backbone: Annotated[str, typer.Option(help="Whose banks to load.")] = "pocket",
    out: Annotated[Path, typer.Option(help="The CSV; the heat map goes beside it as "
                                           ".png.")] = Path("results/sweep.csv"),
    resume: Resume = False,
    jobs: Jobs = -1,
    engine: Engine = "joblib",
    address: Address = "",
    allow_fewer: AllowFewer = False,
):
    """Sweep a method's settings: every bank × point of the grid × shots × seed, as a CSV, a table
    and a heat map.

    The setting is chosen on validation images; beside its test accuracy stands the best that any
    setting has on test, to show how much choosing on test would flatter. A text adapter's ratio is
    β: it follows the grid's alpha.

    Example: `clip-adapter-lite sweep --banks dtd10,sun18 --grid alpha=0,0.2,0.6,1 --grid
        branch=visual,text`
    """
    from .. import plots
    from ..experiments.sweep import chosen_on_validation, plan_sweep
    from ..experiments.sweep import sweep as run
    out, axes = located(out), dict(map(grid_axis, grid))
    drawn = [name for name, values in axes.items() if len(values) > 1]
    loaded = banks_listed(banks, backbone)
    study = dict(banks=loaded, base=method_named(method), grid=axes,
                 shots=numbers(shots, "--shots"), seeds=numbers(seeds, "--seeds"),
                 allow_fewer=allow_fewer)
    console.print(f"{len(plan_sweep(**study))} runs: {len(study['banks'])} bank(s) × "
                  f"{' × '.join(f'{len(values)} {name}' for name, values in axes.items())} × "
                  f"{len(study['shots'])} shots × {len(study['seeds'])} seeds.", highlight=False)
    if len(drawn) > 1:
        plots.may_save(out.with_suffix(".png"))
    with stoppable(out):
        table = run(**study, out=out, resume=resume, jobs=jobs, engine=engine,
                    address=address or None, progress=True)
    console.print(chosen_table(chosen_on_validation(table, axes, loaded), axes,
                               plots.features_of(backbone)))
    written = [str(out), str(out.with_suffix(".json"))]
    if len(drawn) > 1:
        x, y = ("alpha", next(n for n in drawn if n != "alpha")) if "alpha" in drawn else drawn[:2]
        written.append(str(plots.save(plots.heat_map(table, x, y), out.with_suffix(".png"))))
    told(f"\nWrote {', '.join(written)} ({len(table)} runs).")


def chosen_table(chosen, axes, features: str) -> Table:
    """What validation chose for each bank and number of shots; three settings stand in 80 columns."""
    table = Table(title="Chosen on validation (means over seeds, in %)", title_justify="left",
                  box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False,
                  caption=f"features: {features}; labelled: images a class that the choice took, "
                          "shots and validation; the last column is chosen on test and only shows "
                          "how that would flatter",
                  caption_justify="left")
    for title in ("bank", "shots", "labelled", *axes, "val", "test", "best on test"):
        table.add_column(title, justify="left" if title == "bank" else "right",
                         no_wrap=title != "best on test")
    for row in chosen.to_dict("records"):
        table.add_row(escape(row["dataset"]), str(row["shots"]), f"{row['labelled']:.3g}",
                      *(f"{row[a]:g}" if isinstance(row[a], float) else str(row[a])
                                                         for a in axes),
                      *(f"{100 * row[k]:.1f}" for k in ("val_accuracy", "accuracy", "best_accuracy")))
    return table
