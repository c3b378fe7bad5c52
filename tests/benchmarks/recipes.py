"""How steps and rates were chosen, and accuracy against steps for ours and for the peers' protocol.

    python tests/benchmarks/recipes.py            # about 26 minutes on two idle cores
    python tests/benchmarks/recipes.py --quick    # one bank; or --only "α = 0.2"

Accuracies are those of the bundled banks' validation parts (which hold the few images that α is selected on); test splits
are not touched. Every number of steps is a run of its own with its own cosine, since a recipe is a whole schedule. Seconds
are those of a fit with one thread while another runs beside it. results/recipes.csv gets one row per fit.
"""
import csv
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer
from joblib import Parallel, delayed
from peers import BATCH, EPOCHS, accuracy, train_as_peers
from rich.console import Console
from rich.progress import track
from rich.table import Table

import clip_adapter_lite as cal
from clip_adapter_lite.devices import threads

BANKS, QUICK, SHOTS, SEEDS = ("caltech101", "pacs-cartoon", "sun18", "rsscn7"), ("pacs-cartoon",), (1, 16), (1, 2)
TABLES = {"recipes": "Validation accuracy of the recipes that were chosen from",
          "steps": "Validation accuracy against steps, ours and the peers'"}
RESULTS = Path(__file__).parents[2] / "results" / "recipes.csv"


@dataclass(frozen=True)
class Row:
    """One fit: which table (of TABLES) and line it belongs to, what it was fitted to, what came out."""
    table: str
    method: str
    bank: str
    shots: int
    seed: int
    steps: int
    seconds: float
    val_accuracy: float


def ours(method: cal.Method, episode: cal.Episode, val: cal.Split) -> tuple[int, float]:
    fitted = method.fit(episode)
    return fitted.steps, fitted.accuracy(val)


def peers(alpha: float, epochs: int, episode: cal.Episode, val: cal.Split) -> tuple[int, float]:
    head = train_as_peers(episode, alpha, epochs)
    return epochs * -(-len(episode.support) // BATCH), accuracy(head, val)


def lines() -> list[tuple[str, str, Callable]]:
    """(table, line, fit) in the order they are printed; fit(episode, val) gives steps and validation accuracy."""
    settings = ({}, {"alpha": "val"}, {"alpha": 0.2}, {"branch": "text"}, {"alpha": "learned"})
    chosen = [cal.CLIPAdapter(**setting, steps=s, rate=r) for setting in settings
              for s, r in ((30, 1e-3), (60, 5e-4), (60, 1e-3), (120, 3e-4), (120, 5e-4), (120, 1e-3))]
    chosen += [cal.CoOp(steps=100, rate=r) for r in (3e-3, 1e-2, 3e-2)]
    chosen += [cal.TipAdapter(finetune=True, steps=s, rate=r) for s, r in
               ((20, 3e-3), (60, 3e-4), (60, 1e-3), (60, 3e-3), (60, 1e-2), (120, 1e-3), (120, 3e-3))]
    chosen += [cal.CLAP(constraint=c, steps=s, rate=r) for c in (True, False)
               for s, r in ((60, 1e-3), (120, 3e-4), (120, 1e-3), (120, 3e-3))]
    chosen += [cal.LinearAdapter(steps=s, rate=r) for s, r in ((60, 1e-4), (60, 3e-4), (60, 1e-3), (120, 3e-4), (120, 1e-3))]
    found = [("recipes", f"{replace(m, steps=type(m).steps, rate=type(m).rate).label}, {m.steps} steps at {m.rate:g}",
              partial(ours, m)) for m in chosen]
    for alpha in (0.2, 0.6):
        for rate, steps in product((cal.CLIPAdapter.rate, 2e-3), (10, 15, 20, 40, 120)):
            found.append(("steps", f"clip-adapter, α = {alpha}, full batch at {rate:g} / α",
                          partial(ours, cal.CLIPAdapter(alpha=alpha, steps=steps, rate=rate))))
        for epochs in (5, 50, EPOCHS):
            found.append(("steps", f"clip-adapter, α = {alpha}, peers' {epochs} epochs", partial(peers, alpha, epochs)))
    for steps in (25, 50, 100):
        found.append(("steps", f"coop, full batch at {cal.CoOp.rate:g}", partial(ours, cal.CoOp(steps=steps))))
    found.append(("steps", "coop, its authors' recipe", partial(ours, cal.CoOp(recipe="paper"))))
    return found


def done(index: int, table: str, line: str, fit: Callable, bank: cal.FeatureBank, shots: int, seed: int) -> tuple[int, Row]:
    episode, val = bank.episode(shots, seed), bank.splits["val"].to(torch.float32)
    with threads(1):
        start = time.perf_counter()
        steps, found = fit(episode, val)
        return index, Row(table, line, bank.dataset, shots, seed, steps, time.perf_counter() - start, found)


def show(title: str, rows: list[list[Row]], console: Console) -> None:
    """One line for each list of rows: the fits of one recipe on all banks."""
    cells = list(dict.fromkeys((r.bank, r.shots) for r in rows[0]))
    table = Table("recipe", "steps", "mean s", *(f"{bank}, {shots}" for bank, shots in cells), "mean", title_justify="left",
                  title=f"{title}; in %, mean of seeds {', '.join(map(str, SEEDS))}; the pocket CLIP's features")
    for line in rows:
        fewest, most = min(r.steps for r in line), max(r.steps for r in line)
        means = [mean(r.val_accuracy for r in line if (r.bank, r.shots) == cell) for cell in cells]
        table.add_row(line[0].method, f"{fewest}" if fewest == most else f"{fewest} to {most}",
                      f"{mean(r.seconds for r in line):.2f}", *(f"{100 * value:.1f}" for value in (*means, mean(means))))
    console.print(table)


def write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    with partial_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows({**asdict(row), "seconds": round(row.seconds, 4)} for row in rows)
    partial_path.replace(path)


def main(quick: Annotated[bool, typer.Option(help="One bank, pacs-cartoon.")] = False,
         only: Annotated[str, typer.Option(help="Only the lines whose name holds this, as \"α = 0.2\".")] = "",
         out: Annotated[Path, typer.Option(help="Where to write one row per fit.")] = RESULTS):
    """Print how the recipes were chosen, and accuracy against steps for ours and the peers' protocol.

    Example: `python tests/benchmarks/recipes.py --quick --out /tmp/recipes.csv`
    """
    console, asked = Console(width=170), [line for line in lines() if only in line[1]]
    if not asked:
        names = dict.fromkeys(name for _, name, _ in lines())
        raise typer.BadParameter(f"no line's name holds {only!r}; they are: {'; '.join(names)}.")
    banks = [cal.FeatureBank.load(name) for name in (QUICK if quick else BANKS)]
    jobs = [(*line, bank, shots, seed) for line in asked for bank in banks for shots in SHOTS for seed in SEEDS]
    longest_first = sorted(range(len(jobs)), key=lambda i: "authors" not in jobs[i][1])
    work = Parallel(n_jobs=-1, return_as="generator_unordered")(delayed(done)(i, *jobs[i]) for i in longest_first)
    found = dict(track(work, "fits", total=len(jobs), console=console))
    rows = [found[i] for i in range(len(jobs))]
    each = len(jobs) // len(asked)
    for name, title in TABLES.items():
        if chosen := [rows[i:i + each] for i in range(0, len(rows), each) if rows[i].table == name]:
            show(title, chosen, console)
    write(rows, out)
    console.print(f"{len(rows)} fits in {out}")


if __name__ == "__main__":
    typer.run(main)
