"""Figures of one fit in several places: accuracy over α where it was trained and elsewhere, and
calibration there.
"""
import matplotlib
from matplotlib.lines import Line2D

from ..naming import NAMES
from .studies import EDGE, _grid, _outer, need, seeds_of
from .style import COLOURS, GREY, PALETTE, WIDTH, Figure, footer, frame, label_ends, theme

DEEP = [PALETTE[i] for i in (0, 3, 2, 1, 4, 5)]  # dark enough for lines and their labels
SIGNS = "osDv^X"  # a second sign beside the colour


@matplotlib.rc_context(theme())
def accuracy_over_alpha(table) -> Figure:
    """Accuracy over the residual ratio α, a line per dataset: mean over seeds, bars of one standard
    deviation.

    table: rows with dataset, backbone, method, shots, seed, alpha, accuracy; α = 0 is zero-shot
    CLIP and drawn as a dotted line across. Raises ValueError for a table without these columns.
    """
    need(table, "dataset", "alpha", "accuracy")
    figure = Figure(figsize=(8.5, 4.2))
    axis, ends = figure.subplots(), {}
    for colour, sign, (dataset, rows) in zip(DEEP, SIGNS, table.groupby("dataset", sort=False)):
        over = 100 * rows.groupby("alpha").accuracy.agg(["mean", "std"])
        axis.errorbar(over.index, over["mean"], over["std"].fillna(0), color=colour, marker=sign,
                      markersize=5, capsize=3, linewidth=1.8)
        if 0 in over.index:
            axis.axhline(over["mean"][0], color=colour, linewidth=1.2, linestyle=":")
        ends[dataset] = (over["mean"].iloc[-1], colour)
    axis.set(xlabel="residual ratio α", ylabel="test accuracy (%)", xlim=(-0.03, 1.03), ylim=(0, 102))
    axis.legend(handles=[Line2D([], [], color=GREY, linestyle=":", label="α = 0: zero-shot CLIP")],
                loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    label_ends(axis, ends)
    footer(figure, table.backbone.unique(), seeds_of(table, bars=True))
    frame(axis)
    return figure


@matplotlib.rc_context(theme())
def reliability_shift(curves, backbone: str | None = None) -> Figure:
    """Accuracy against confidence, {method: {place: table of `reliability_curve`}}: a panel per
    method, a line per place.

    On the diagonal accuracy is what confidence promises, below it the method is too sure; larger
    points hold more images. The title gives the calibration error (ECE) of each place in %.
    """
    figure, axes, columns = _grid(len(curves), 3, {1: 4.5, 2: 4.5}.get(len(curves), WIDTH / 3), 3.5,
                                  0.8, sharex=True, sharey=True)
    places = list(dict.fromkeys(place for lines in curves.values() for place in lines))
    styles = dict(zip(places, zip(DEEP, SIGNS)))
    for axis, (method, lines) in zip(axes, curves.items()):
        axis.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--")
        errors = []
        for place, curve in lines.items():
            share, (colour, sign) = curve["count"] / curve["count"].sum(), styles[place]
            axis.plot(100 * curve.confidence, 100 * curve.accuracy, color=colour, linewidth=1.2,
                      alpha=0.7)
            axis.scatter(100 * curve.confidence, 100 * curve.accuracy, s=8 + 250 * share,
                         color=colour, marker=sign, zorder=3, **EDGE)
            errors.append(f"{100 * (share * (curve.accuracy - curve.confidence).abs()).sum():.0f} "
                          f"% {place}")
        title = "\n".join([NAMES.get(method, method), "ECE " + errors[0], *errors[1:]])
        axis.set(title=title, xlim=(-3, 103), ylim=(-3, 103))
        axis.set_aspect("equal")
    _outer(axes, columns, "confidence (%)", "accuracy (%)")
    signs = [Line2D([], [], color=colour, marker=sign, label=place)
             for place, (colour, sign) in styles.items()]
    figure.legend(handles=signs, loc="outside upper center", ncols=len(signs), frameon=False)
    footer(figure, [backbone], "larger points hold more test images; below the diagonal: too sure")
    return figure


@matplotlib.rc_context(theme())
def error_over_scale(table, marks=None) -> Figure:
    """Calibration error over the logit scale, a panel per dataset, a line per method, the lowest
    point of each marked.

    table: rows with dataset, backbone, method, scale (a factor on the logits), error in [0, 1].
    marks: {label: factor} for vertical lines; 1 is the scale that the method has. Raises ValueError
    for a table without these columns.
    """
    need(table, "dataset", "backbone", "method", "scale", "error")
    datasets, methods = list(table.dataset.unique()), list(table.method.unique())
    colours = dict(zip([m for m in methods if m not in COLOURS], DEEP)) | COLOURS
    figure, axes, columns = _grid(len(datasets), 2, {1: 6.5}.get(len(datasets), WIDTH / 2), 2.7,
                                  0.9, sharex=True, sharey=True)
    for axis, (dataset, here) in zip(axes, table.groupby("dataset", sort=False)):
        for label, factor in (marks or {"as it is": 1}).items():
            axis.axvline(factor, color=GREY, linewidth=1, linestyle=":")
            axis.text(factor, 1.01, label, transform=axis.get_xaxis_transform(), fontsize=9,
                      color=GREY, ha="center")
        for method in here.method.unique():
            line = here[here.method == method].sort_values("scale")
            axis.plot(line["scale"], 100 * line.error, color=colours[method], linewidth=1.8)
            low = line.loc[line.error.idxmin()]
            axis.plot([low["scale"]], [100 * low.error], "o", color=colours[method], markersize=7)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_title(dataset, pad=18)
    axes[0].set_ylim(bottom=0)  # shared, and only now: it ends the scaling to what is drawn
    _outer(axes, columns, "factor on the logits", "calibration error (%)")
    lines = [Line2D([], [], color=colours[method], linewidth=1.8, label=NAMES.get(method, method))
             for method in methods]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False)
    footer(figure, table.backbone.unique(), "points: the lowest of each line, which a user could "
                                            "not know")
    return figure
