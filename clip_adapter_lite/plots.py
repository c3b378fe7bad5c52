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


def heat_map(table, x: str = "alpha", y: str = "reduction", metric: str = "accuracy", columns: int = 3) -> Figure:
    """A sweep's table as heat maps: mean `metric` in % over seeds, x across, y down, a panel for all else that varies.

    x, y: two of the sweep's settings. The cell that validation would choose (highest mean val_accuracy over seeds, of
    equals the first in the table's order) is outlined in each panel. Raises ValueError for a column that is not there.
    """
    for column in (x, y, metric):
        if column not in table:
            raise ValueError(f"The table has no column '{column}' to draw; it has {', '.join(table.columns)}.")
    fixed = ["seed", "method", "accuracy", "val_accuracy", "steps", "seconds", "parameters", "alpha", x, y]
    varying = [c for c in table.columns if c not in fixed and table[c].nunique() > 1]
    panels = [((), table)] if not varying else list(table.groupby(varying, sort=False))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    values = 100 * table.groupby([*varying, x, y])[metric].mean()
    with matplotlib.rc_context(theme()):
        figure = Figure(figsize=(max(3.2, 0.52 * table[x].nunique() + 1.2) * columns,
                                 (0.42 * table[y].nunique() + 1.2) * rows + 0.8), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (names, panel) in zip(axes.flat, panels):
            means = panel.groupby([y, x], sort=False)[[metric, "val_accuracy"]].mean()
            grid = 100 * means[metric].unstack(x).reindex(index=panel[y].unique(), columns=panel[x].unique())
            seaborn.heatmap(grid, ax=axis, annot=True, fmt=".0f", cmap="cividis", vmin=values.min(), vmax=values.max(),
                            cbar=False, annot_kws={"size": 9}, linewidths=0.5)
            if means["val_accuracy"].notna().any():
                row, column = means["val_accuracy"].idxmax()
                axis.add_patch(matplotlib.patches.Rectangle(
                    (grid.columns.get_loc(column), grid.index.get_loc(row)), 1, 1, fill=False, edgecolor="#d62728", lw=2.5))
            axis.set(title=", ".join(str(n) if c == "dataset" else f"{n} {c}" for c, n in zip(varying, names)),
                     xlabel=x, ylabel=y)
            axis.label_outer()
            axis.tick_params(axis="y", rotation=0)
        for axis in axes.flat[len(panels):]:
            axis.remove()
        what = {"accuracy": "test accuracy", "val_accuracy": "validation accuracy"}.get(metric, metric)
        seeds = table.seed.nunique()
        figure.suptitle(f"{what} (%), mean of {seeds} seed{'' if seeds == 1 else 's'}; outlined: chosen on validation",
                        fontsize=11)
        figure.supxlabel(f"features: {', '.join(features_of(b) for b in table.backbone.unique())}", fontsize=9,
                         color="#555555")
    return figure
