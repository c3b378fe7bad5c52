"""Figures of whole studies: tables of `compare` and `sweep`, one row per run, and verdicts on them."""
import matplotlib
import seaborn

from ..naming import NAMES, count
from .style import (
    COLOURS,
    GREY,
    MARKERS,
    PALETTE,
    WIDTH,
    Figure,
    colours_of,
    footer,
    ink,
    label_ends,
    label_points,
    legend_above,
    theme,
)

MEASURED = ("seed", "method", "labelled", "accuracy", "val_accuracy", "steps", "seconds", "parameters")
METRICS = {"accuracy": "test accuracy", "val_accuracy": "validation accuracy"}
EDGE = {"edgecolor": "white", "linewidth": 0.8}


def need(table, *columns: str) -> None:
    """Raise ValueError for a column that the table does not have."""
    for column in columns:
        if column not in table:
            raise ValueError(f"The table has no column '{column}' to draw; it has "
                             f"{', '.join(map(str, table.columns))}.")


def panels_of(table, *axes: str) -> list:
    """(title, rows) for each combination of the settings that vary, those on the figure's own axes
    left out.
    """
    axes = [*MEASURED, *axes]
    varied = axes[len(MEASURED):]
    if ("alpha" not in table or "method" in varied
            or table.groupby("method").alpha.nunique().max() > 1):
        axes.append("alpha")  # found by the fit, not set
    varying = [c for c in table.columns if c not in axes and table[c].nunique() > 1]

    def named(column: str, value) -> str:
        if column == "shots":
            return count(value, "shot")
        return str(value) if column in ("dataset", "backbone") else f"{value} {column}"

    return [(", ".join(map(named, varying, names)), rows)
            for names, rows in (table.groupby(varying, sort=False) if varying else [((), table)])]


def seeds_of(table, bars: bool = False) -> str:
    """"mean of 3 seeds", or "mean of 3 to 10 seeds" of a table with more of the quick runs; and if
    it is precomputed. bars: say what they show, where several seeds give some.
    """
    counts = table.groupby([c for c in ("dataset", "backbone", "method", "shots")
                            if c in table]).seed.nunique()
    few, most = counts.min(), counts.max()
    precomputed = "precomputed; " if "commits" in table.attrs else ""  # as `reference()` is
    seeds = count(most, "seed") if few == most else f"{few} to {most} seeds"
    shown = ", bars: one standard deviation" if bars and most > 1 else ""
    return f"{precomputed}mean of {seeds}{shown}"


def _grid(panels: int, columns: int, width: float, height: float, extra: float, **shared):
    """A figure of so many panels, each `width` by `height` inches, with `extra` inches more in
    height; panels; columns.
    """
    columns = max(1, min(columns, panels, int(WIDTH / min(width, WIDTH))))
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows + extra), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.06)
    for axis in axes.flat[panels:]:
        axis.remove()
    return figure, list(axes.flat[:panels]), columns


def _outer(axes: list, columns: int, x: str, y: str) -> None:
    """Labels at the left and below the lowest panel of each column (`label_outer` forgets those
    above a removed one).
    """
    for i, axis in enumerate(axes):
        left, lowest = i % columns == 0, i + columns >= len(axes)
        axis.tick_params(labelleft=left, labelbottom=lowest)
        axis.set(xlabel=x if lowest else "", ylabel=y if left else "")


@matplotlib.rc_context(theme())
def accuracy_over_shots(table, columns: int = 3) -> Figure:
    """Accuracy over shots: a panel per dataset, a line per method (mean over seeds, bars of one
    standard deviation).

    Zero-shot, which sees no shots, is a dashed line. The y-axis is shared, so that panels can be
    compared. In a single panel up to six lines are labelled at their ends, otherwise a legend
    stands above.
    """
    from ..experiments.compare import summarise
    summary = summarise(table)
    datasets, methods = list(dict.fromkeys(summary.dataset)), list(dict.fromkeys(summary.method))
    shots, colours = sorted(summary.shots.unique()), colours_of(methods)
    direct = len(datasets) == 1 and len(methods) <= 6
    width = {1: 7.0, 2: 4.9}.get(min(columns, len(datasets)), 3.3)
    figure, axes, columns = _grid(len(datasets), columns, width, 3.9 if width > 4 else 2.9,
                                  0.4 if direct else 0.9, sharey=True)
    for axis, dataset in zip(axes, datasets):
        here, ends = summary[summary.dataset == dataset], {}
        for method in methods:
            line = here[here.method == method].sort_values("shots")
            style = dict(color=colours[method], label=NAMES.get(method, method))
            if method == "zero-shot":
                axis.axhline(100 * line["mean"].mean(), linestyle="--", linewidth=1.5, **style)
            else:
                axis.errorbar(line.shots, 100 * line["mean"], 100 * line["std"].fillna(0),
                              marker=MARKERS.get(method, "o"), markersize=5, linewidth=1.8,
                              capsize=3, **style)
            if len(line):
                last = line["mean"].mean() if method == "zero-shot" else line["mean"].iloc[-1]
                ends[NAMES.get(method, method)] = (100 * last, colours[method])
        axis.set(title=dataset, xscale="log", xlabel="shots per class")
        axis.set_xticks(shots, [str(s) for s in shots])
        axis.minorticks_off()
    for axis in axes[::columns]:
        axis.set_ylabel("test accuracy (%)")
    if direct:
        label_ends(axes[0], ends)
    else:
        legend_above(figure, axes[0])
    footer(figure, summary.backbone.unique(), seeds_of(table, bars=True),
           "selection on validation only")
    return figure


@matplotlib.rc_context(theme())
def heat_map(table, x: str = "alpha", y: str = "reduction", metric: str = "accuracy",
             columns: int = 3) -> Figure:
    """A sweep's table as heat maps: mean `metric` in % over seeds, x across, y down, a panel for
    all else that varies.

    x, y: two of the sweep's settings. The cell that validation would choose (highest mean
    val_accuracy over seeds, of equals the first in the table's order) is outlined in each panel.
    Raises ValueError for a column that is not there.
    """
    need(table, x, y, metric)
    panels = panels_of(table, x, y)
    means = [rows.groupby([y, x], sort=False)[list({metric, "val_accuracy"})].mean()
             for _, rows in panels]
    low, high = (100 * f(f(mean[metric]) for mean in means) for f in (min, max))
    figure, axes, columns = _grid(len(panels), columns, max(2.6, 0.33 * table[x].nunique() + 1),
                                  0.33 * table[y].nunique() + 0.9, 0.8, sharex=True, sharey=True)
    for axis, (title, rows), mean in zip(axes, panels, means):
        grid = 100 * mean[metric].unstack(x).reindex(index=rows[y].unique(), columns=rows[x].unique())
        seaborn.heatmap(grid, ax=axis, annot=True, fmt=".0f", cmap="cividis", vmin=low, vmax=high,
                        cbar=False, annot_kws={"size": 9}, linewidths=0.5)
        # seaborn writes white on mid tones
        for text, face in zip(axis.texts, axis.collections[0].get_facecolors()):
            text.set_color("white" if seaborn.utils.relative_luminance(face) < 0.18 else "black")
        if mean["val_accuracy"].notna().any():
            row, column = mean["val_accuracy"].idxmax()
            axis.add_patch(matplotlib.patches.Rectangle((grid.columns.get_loc(column),
                                                         grid.index.get_loc(row)), 1, 1,
                                                        fill=False, edgecolor="#d62728", lw=2.5,
                                                        clip_on=False))
        axis.set_title(title)
        axis.tick_params(axis="y", rotation=0)
    _outer(axes, columns, x, y)
    title = f"{METRICS.get(metric, metric)} (%), {seeds_of(table)}; outlined: chosen on validation"
    if 0.09 * len(title) > figure.get_figwidth():  # inches of a letter
        title = title.replace("; ", "\n")
    figure.suptitle(title, fontsize=11)
    footer(figure, table.backbone.unique())
    return figure


@matplotlib.rc_context(theme())
def accuracy_bars(table, by: str = "method", columns: int = 3, hue: str | None = None) -> Figure:
    """Mean test accuracy as bars with one standard deviation over seeds: a group per value of `by`,
    a bar per `hue`.

    A panel per dataset, and for whatever else varies. hue: a second column; by default "method" if
    several methods share a value of `by`, else none. Raises ValueError for a column that is not
    there.
    """
    need(table, by, *([hue] if hue else []))
    if hue is None and by != "method" and (table.groupby(by).method.nunique() > 1).any():
        hue = "method"
    panels, groups = panels_of(table, by, hue or by), list(table[by].unique())
    groups = groups if any(isinstance(group, str) for group in groups) else sorted(groups)
    hues = list(table[hue].unique()) if hue else [None]
    own = colours_of(map(str, groups if by == "method"
                         else hues)) if "method" in (by, hue) else dict(zip(hues, PALETTE))
    many, thick = len(groups) * len(hues), 0.8 / len(hues)
    names = [NAMES.get(g, str(g)) for g in groups]
    width = min(WIDTH, max(3.2, 0.42 * many + 0.9))
    steep = max(map(len, names)) * len(names) > 9 * width
    figure, axes, columns = _grid(len(panels), columns, width, 2.7,
                                  0.5 + 0.4 * bool(hue) + 0.8 * steep, sharex=True, sharey=True)
    for axis, (title, rows) in zip(axes, panels):
        for h, value in enumerate(hues):
            here = (rows if hue is None else rows[rows[hue] == value]).groupby(by).accuracy
            mean, sd = (100 * getattr(here, f)().reindex(groups) for f in ("mean", "std"))
            places = [g + (h - (len(hues) - 1) / 2) * thick for g in range(len(groups))]
            colour = own.get(value, PALETTE[0])
            if by == "method":
                colour = [own.get(g, PALETTE[0]) for g in groups]
            label = NAMES.get(value, value) if hue == "method" else f"{hue} {value}"
            bars = axis.bar(places, mean, thick, yerr=sd.fillna(0), color=colour, label=label,
                            error_kw={"elinewidth": 1.2, "capsize": 2.5}, **EDGE)
            if many <= 10:
                axis.bar_label(bars, [f"{m:.0f}" if m == m else "" for m in mean], fontsize=9,
                               padding=2)
        axis.set_xticks(range(len(groups)), names, rotation=35 if steep else 0,
                        ha="right" if steep else "center",
                        rotation_mode="anchor" if steep else "default")
        axis.grid(axis="x", visible=False)
        axis.margins(y=0.1)
        axis.set_title(title or ("" if by == "dataset" else rows.dataset.iloc[0]))
    _outer(axes, columns, "" if by == "method" else by, "test accuracy (%)")
    if hue:
        legend_above(figure, axes[0])
    footer(figure, table.backbone.unique(), seeds_of(table, bars=True))
    return figure


@matplotlib.rc_context(theme())
def gain_scatter(table, a: str, b: str, reference: str = "zero-shot", shots: int = 1) -> Figure:
    """What method a gains over b, in points of test accuracy, against the accuracy of `reference`:
    a point per bank.

    Mean and one standard deviation over the seeds that a and b share. Raises ValueError if a method
    was not run with so many shots.
    """
    here = table[table.shots == shots]
    for method in (a, b, reference):
        if method not in set(here.method):
            raise ValueError(f"There are no runs of '{method}' with {count(shots, 'shot')} in the "
                             f"table, which has {', '.join(here.method.unique()) or 'none at all'}; "
                             "run it, or name another method.")
    wide = here.pivot(index=["dataset", "backbone", "seed"], columns="method", values="accuracy")
    gain = (100 * (wide[a] - wide[b])).dropna().groupby(["dataset", "backbone"],
                                                        sort=False).agg(["mean", "std"])
    x = 100 * wide[reference].groupby(["dataset", "backbone"]).mean().reindex(gain.index)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color=GREY, linewidth=1)
    points = axis.errorbar(x, gain["mean"], gain["std"].fillna(0), fmt="o",
                           color=COLOURS.get(a, PALETTE[0]), markersize=6, capsize=3, elinewidth=1.2)
    first, second, third = (NAMES.get(method, method) for method in (a, b, reference))
    axis.margins(x=0.1)
    axis.set(xlabel=f"test accuracy of {third} (%)", ylabel=f"gain of {first}\nover {second} (points)",
             title=f"{count(shots, 'shot')} per class; above the line {first} is better")
    footer(figure, here.backbone.unique(), seeds_of(here[here.method.isin([a, b])], bars=True))
    figure.draw_without_rendering()
    label_points(axis, list(zip(x, gain["mean"])), [dataset for dataset, _ in gain.index],
                 bars=points.lines[2][0].get_segments())
    return figure


@matplotlib.rc_context(theme())
def best_ratio(table, metric: str = "val_accuracy") -> Figure:
    """The α with the highest `metric` of each bank against its zero-shot accuracy: mean and one
    deviation over seeds.

    table: one number of shots, and for each bank and seed either a row per α (α = 0, or
    "zero-shot", is zero-shot CLIP), or rows whose α the fit has chosen. Of equal α the smallest
    counts. metric "accuracy" is the best α on test, and the figure says that
    this is cheating. Raises ValueError for a table that is otherwise.
    """
    need(table, metric, "alpha")
    if table.shots.nunique() != 1:
        raise ValueError("best_ratio() needs rows of one number of shots; the table has "
                         f"{table.shots.nunique()}, so give it table[table.shots == 16], say.")
    bank = ["dataset", "backbone"]
    zero = table[(table.alpha == 0) | (table.method
                                       == "zero-shot")].groupby(bank, sort=False).accuracy.mean()
    adapters = table[table.alpha.notna() & table[metric].notna()
                     & (table.method != "zero-shot")].sort_values("alpha")
    best = adapters.loc[adapters.groupby([*bank,
                                          "seed"])[metric].idxmax()].groupby(bank, sort=False).alpha
    chosen = best.agg(["mean", "std"])
    if absent := [name for name, _ in chosen.index.difference(zero.index)]:
        raise ValueError(f"The table has no zero-shot accuracy of {absent[0]}; add runs of "
                         "'zero-shot' or with α = 0.")
    x = 100 * zero.reindex(chosen.index)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    points = axis.errorbar(x, chosen["mean"], chosen["std"].fillna(0), fmt="o",
                           color=COLOURS["clip-adapter"], markersize=6, capsize=3, elinewidth=1.2)
    axis.margins(x=0.1)
    where = {"val_accuracy": "chosen on validation",
             "accuracy": "chosen on TEST: cheating, shown for comparison"}
    axis.set(xlabel="zero-shot accuracy on test (%)", ylabel="best residual ratio α",
             ylim=(-0.05, 1.05), title=f"best α at {count(table.shots.iloc[0], 'shot')} per class, "
                                       f"{where.get(metric, f'highest {metric}')}")
    footer(figure, table.backbone.unique(), seeds_of(adapters, bars=True))
    figure.draw_without_rendering()
    label_points(axis, list(zip(x, chosen["mean"])), [dataset for dataset, _ in chosen.index],
                 bars=points.lines[2][0].get_segments())
    return figure


@matplotlib.rc_context(theme())
def differences(comparisons, backbone: str | None = None) -> Figure:
    """Verdicts as a forest plot: a - b in points with its 95 % interval, a line at zero, the
    verdict in words beside it.

    comparisons: `Comparison`s of `paired_bootstrap`, or {label: Comparison}.
    """
    labels = list(comparisons) if isinstance(comparisons, dict) else None
    found = list(comparisons.values()) if labels else list(comparisons)
    labels = labels or [f"{NAMES.get(c.a, c.a)}\nminus {NAMES.get(c.b, c.b)}" for c in found]
    figure = Figure(figsize=(9, 0.55 * len(found) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=GREY, linewidth=1)
    for row, c in enumerate(found):
        better = c.a if c.low > 0 else c.b if c.high < 0 else None
        colour = colours_of([better])[better] if better else GREY
        axis.errorbar([100 * c.difference], [row],
                      xerr=[[100 * (c.difference - c.low)], [100 * (c.high - c.difference)]],
                      fmt="o" if better else "D", color=colour, capsize=4, markersize=7, linewidth=2)
        words = f"{NAMES.get(better, better)} above" if better else "cannot tell"
        axis.text(1.02, row, f"{words}\n{count(c.banks, 'bank')}, {count(c.runs, 'pair')}",
                  color=ink(colour), fontsize=9, va="center", transform=axis.get_yaxis_transform())
    axis.set_yticks(range(len(found)), labels)
    axis.set(ylim=(len(found) - 0.4, -0.6), xlabel="difference in test accuracy (points)")
    axis.grid(axis="y", visible=False)
    footer(figure, [backbone], "bars: 95 % intervals of the paired bootstrap")
    return figure


@matplotlib.rc_context(theme())
def reliability(curves, backbone: str | None = None) -> Figure:
    """Accuracy against confidence, {label: table of `reliability_curve`}: a panel each, points
    sized by their count.

    On the diagonal accuracy is what confidence promises; the title gives the calibration error
    (ECE) in %.
    """
    figure, axes, columns = _grid(len(curves), 4,
                                  {1: 4.5, 2: 4.0}.get(len(curves),
                                                       WIDTH / min(max(len(curves), 1), 4)), 3.2,
                                  0.4, sharex=True, sharey=True)
    for axis, (label, curve) in zip(axes, curves.items()):
        share, colour = curve["count"] / curve["count"].sum(), COLOURS.get(label, PALETTE[0])
        axis.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--")
        axis.plot(100 * curve.confidence, 100 * curve.accuracy, color=colour, linewidth=1, alpha=0.6)
        axis.scatter(100 * curve.confidence, 100 * curve.accuracy, s=20 + 300 * share, color=colour,
                     zorder=3, **EDGE)
        error = (share * (curve.accuracy - curve.confidence).abs()).sum()
        axis.set(title=f"{NAMES.get(label, label)}\nECE {100 * error:.1f} %", xlim=(-4, 104),
                 ylim=(-4, 104))
        axis.set_aspect("equal")
    _outer(axes, columns, "confidence (%)", "accuracy (%)")
    footer(figure, [backbone], "larger points hold more test images")
    return figure
