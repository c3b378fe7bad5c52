"""The figures. Each function takes a tidy table and returns a matplotlib Figure; nothing is computed but means and bars.

The house style is set here and nowhere else: seaborn's colour-blind palette, one colour a method everywhere.
"""
from pathlib import Path

import matplotlib
import seaborn
from matplotlib.figure import Figure

COLOURS = dict(zip(("zero-shot", "linear-probe", "coop", "clip-adapter", "tip-adapter", "tip-adapter(finetune=True)"),
                   ("#555555", *(seaborn.color_palette("colorblind").as_hex()[i] for i in (0, 2, 3, 4, 5)))))
NAMES = {"zero-shot": "zero-shot CLIP", "linear-probe": "linear probe", "coop": "CoOp", "clip-adapter": "CLIP-Adapter",
         "tip-adapter": "Tip-Adapter", "tip-adapter(finetune=True)": "Tip-Adapter-F"}


def theme() -> dict:
    """matplotlib settings of the house style, for `matplotlib.rc_context(theme())`."""
    return {**seaborn.axes_style("whitegrid"), **seaborn.plotting_context("notebook"), "figure.dpi": 110,
            "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e6e6e6"}


def features_of(backbone: str) -> str:
    """Whose features a figure shows, as every figure says."""
    return "pocket CLIP (ImageNet-supervised image tower)" if backbone == "pocket" else backbone


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure under a temporary name and rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(partial, dpi=150, bbox_inches="tight")
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _colours(methods) -> dict:
    others = [m for m in methods if m not in COLOURS]
    return COLOURS | dict(zip(others, seaborn.husl_palette(len(others)).as_hex()))


def accuracy_over_shots(table, columns: int = 3) -> Figure:
    """Accuracy over shots: a panel per dataset, a line per method (mean over seeds, bars of one standard deviation).

    Zero-shot, which sees no shots, is a dashed line. The y-axis is shared, so that panels can be compared.
    """
    from .compare import summarise
    summary = summarise(table)
    datasets, methods = list(dict.fromkeys(summary.dataset)), list(dict.fromkeys(summary.method))
    shots, colours = sorted(summary.shots.unique()), _colours(methods)
    columns = min(columns, len(datasets))
    rows = -(-len(datasets) // columns)
    with matplotlib.rc_context(theme()):
        figure = Figure(figsize=(4.2 * columns, 3.5 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axis, dataset in zip(axes.flat, datasets):
            here = summary[summary.dataset == dataset]
            for method in methods:
                line = here[here.method == method].sort_values("shots")
                style = dict(color=colours[method], label=NAMES.get(method, method))
                if method == "zero-shot":
                    axis.axhline(100 * line["mean"].mean(), linestyle="--", linewidth=1.5, **style)
                else:
                    axis.errorbar(line.shots, 100 * line["mean"], 100 * line["std"].fillna(0), marker="o", markersize=5,
                                  linewidth=1.8, capsize=3, **style)
            axis.set(title=dataset, xscale="log", xlabel="shots per class")
            axis.set_xticks(shots, [str(s) for s in shots])
            axis.minorticks_off()
        for axis in axes.flat[len(datasets):]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("test accuracy (%)")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        seeds = table.seed.nunique()
        figure.supxlabel(f"features: {', '.join(features_of(b) for b in summary.backbone.unique())}; "
                         f"mean of {seeds} seed{'' if seeds == 1 else 's'}, bars: one standard deviation; "
                         "selection on validation only", fontsize=9, color="#555555")
    return figure
