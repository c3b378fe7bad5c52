"""The bench: every speed and memory figure the project is judged by, measured here and now.

    python tests/benchmarks/bench.py                              # all, half an hour on two idle cores
    python tests/benchmarks/bench.py --only coop-speedup          # one; the others keep their lines in results/bench.json
    python tests/benchmarks/bench.py --only gpu                   # the figures of a GPU, where there is one
    python tests/benchmarks/bench.py --quick                      # does every figure still work? its numbers mean nothing
    python tests/benchmarks/bench.py --profile adapter-over-matmul    # where the time goes

A ratio's two sides are measured by turns (A B A B …) in one run, after one round that is not counted; its value is the
median of five rounds' ratios. Memory is one run in a fresh process.
"""
import json
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import figures_coop as coop
import figures_gpu as gpu
import figures_system as system
import figures_training as training
import torch
import typer
from measuring import Measured
from rich.console import Console
from rich.markup import escape
from rich.table import Table

RESULTS = Path(__file__).parents[2] / "results"
KEPT = {"≤": operator.le, "≥": operator.ge}


@dataclass(frozen=True)
class Figure:
    """One line of the bench. target: such as "≤ 1.5", or None where the figure is only reported.

    measure(quick) measures it; work() gives what --profile runs, if it runs in this process.
    """
    name: str
    unit: str
    target: str | None
    measure: Callable[[bool], Measured]
    work: Callable[[], Callable[[], object]] | None = None

    def row(self, quick: bool = False) -> dict:
        """What bench.json says of it. A figure that raises is not met, and its detail says what was raised."""
        sign, bound = self.target.split() if self.target else ("", None)
        row = {"name": self.name, "value": None, "unit": self.unit, "target": bound and float(bound), "met": False}
        try:
            found = self.measure(quick)
        except Exception as error:  # whatever it is, the other figures are still wanted
            return row | {"detail": f"failed: {type(error).__name__}: {error}"}
        met = found.holds and KEPT[sign](found.value, float(bound)) if self.target else None
        return row | {"value": round(found.value, 4), "met": met, "detail": found.detail}


FIGURES = (
    Figure("adapter-over-matmul", "ratio", "≤ 1.5", training.adapter_over_matmul, training.one_fit),
    Figure("peers-speedup", "ratio", "≥ 20", training.peers_speedup, training.one_fit),
    Figure("coop-speedup", "ratio", "≥ 12", coop.coop_speedup, coop.our_step),
    Figure("coop-memory", "ratio", "≥ 8", coop.coop_memory),
    Figure("alpha-search", "ratio", "≤ 11", training.alpha_search, training.one_fit),
    Figure("learned-ratio", "ratio", "≤ 1.6", training.learned_ratio, training.one_fit),
    Figure("widget-p95-ms", "ms", "≤ 300", system.widget_p95_ms, system.small_fit),
    Figure("ablation-600-seconds", "s", "≤ 30", system.ablation_600_seconds, system.small_fit),
    Figure("core-scaling", "ratio", "≥ 1.6", system.core_scaling, system.small_fit),
    Figure("growth", "ratio", None, training.growth, training.one_fit),
    Figure("peak-memory-mb", "MB", "≤ 2000", training.peak_memory_mb),
    Figure("build-rate", "ratio", "≥ 0.85", system.build_rate, system.one_build),
    Figure("import-ratio", "ratio", "≤ 1.3", system.import_ratio))
ON_GPU = tuple(Figure(*each) for each in gpu.FIGURES)  # where there is one


def chosen(names: Sequence[str], figures: Sequence[Figure] = FIGURES + ON_GPU) -> list[Figure]:
    """The figures of these names, all if there are none; "gpu" is all of a GPU's. Raises ValueError for a name that there
    is not."""
    known = [figure.name for figure in figures]
    names = [name for each in names for name in ([f.name for f in ON_GPU] if each == "gpu" else [each])]
    for name in names:
        if name not in known:
            raise ValueError(f"There is no figure '{name}'; give one of {', '.join(known)}.")
    return [figure for figure in figures if not names or figure.name in names]


def write(rows: Sequence[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def shown(row: dict) -> str:
    if row["value"] is None:
        return "[red]failed[/red]"
    return f"{row['value']:.4g} {row['unit'].replace('ratio', '')}".strip()


def verdict(row: dict) -> str:
    return {None: "reported", True: "[green]met[/green]", False: "[red]not met[/red]"}[row["met"]]


def run(figures: Sequence[Figure], path: Path, console: Console, *, quick: bool = False,
        before: Sequence[dict] = ()) -> list[dict]:
    """Measure the figures, write `path` after each, print a line for each and the table; all rows, in order.

    before: rows of an earlier run that stay for the figures that are not measured now.
    """
    rows = {row["name"]: row for row in before}
    order = list(dict.fromkeys([f.name for f in (*FIGURES, *ON_GPU)] + [f.name for f in figures]))
    for figure in figures:
        start = time.perf_counter()
        with console.status(figure.name):
            rows[figure.name] = row = figure.row(quick)
        write([rows[name] for name in order if name in rows], path)
        console.print(f"{figure.name}: {shown(row)}, {verdict(row)} ({time.perf_counter() - start:.0f} s)\n"
                      f"   {escape(row['detail'])}", highlight=False)
    targets = {figure.name: figure.target for figure in (*FIGURES, *ON_GPU, *figures)}
    table = Table("figure", "value", "target", "", title=f"{path}{' (quick: numbers mean nothing)' if quick else ''}",
                  title_justify="left")
    for row in (found := [rows[name] for name in order if name in rows]):
        table.add_row(row["name"], shown(row), targets[row["name"]] or "report", verdict(row))
    console.print(table)
    return found


def profile(figure: Figure, console: Console) -> None:
    """Print the twelve operations that take most of the time of one run of the figure's own work."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording
    if figure.work is None:
        raise ValueError(f"{figure.name} is measured in other processes, so there is nothing to profile; choose another.")
    work = figure.work()
    work()
    with recording(activities=[ProfilerActivity.CPU]) as record:
        work()
    console.print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40),
                  markup=False, highlight=False, soft_wrap=True)


def main(only: Annotated[str, typer.Option(help="Figures to measure, with commas between them; all by default.")] = "",
         quick: Annotated[bool, typer.Option(help="Small sizes, one round: does everything still work?")] = False,
         profiled: Annotated[str, typer.Option("--profile", help="Show where this figure's time goes instead.")] = "",
         out: Annotated[Path | None, typer.Option(help="Where to write; results/bench.json, or bench-quick.json.")] = None):
    """Measure the project's speed and memory figures; a table at the end, and results/bench.json.

    Example: `python tests/benchmarks/bench.py --only coop-speedup,coop-memory`
    """
    console, path = Console(), out or RESULTS / ("bench-quick.json" if quick else "bench.json")
    try:
        figures = chosen([name.strip() for name in only.split(",") if name.strip()])
        if profiled:
            return profile(chosen([profiled])[0], console)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not torch.cuda.is_available() and any(figure in ON_GPU for figure in figures):
        console.print(f"no GPU here: {', '.join(f.name for f in figures if f in ON_GPU)} are not measured", highlight=False)
        figures = [figure for figure in figures if figure not in ON_GPU]
        if not figures:
            return None
    before = json.loads(path.read_text(encoding="utf-8")) if only and path.exists() else ()
    if any(row["value"] is None for row in run(figures, path, console, quick=quick, before=before)):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
