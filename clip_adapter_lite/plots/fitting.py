"""Figures of single fits: how training goes, what was tried, and which ratios a hypernetwork learns."""
from itertools import cycle

import matplotlib
from matplotlib.lines import Line2D

from ..devices import as_array
from ..naming import NAMES, count
from .style import COLOURS, GREY, PALETTE, Figure, footer, frame, ink, label_ends, theme

DEEP = [PALETTE[i] for i in (3, 0, 2, 1, 4, 5)]  # dark enough for lines and their labels


@matplotlib.rc_context(theme())
def training_curves(curves) -> Figure:
    """Train (dashed) and test (solid) accuracy over training steps, {label: table of
    `curves.training_curve`}.

    The gap between the two lines of a colour is what was learnt of the support images alone.
    """
    figure = Figure(figsize=(8.5, 4.2))
    axis = figure.subplots()
    ends, lows = {}, []
    for colour, (label, curve) in zip(cycle(DEEP), curves.items()):
        axis.plot(curve.step, 100 * curve.train, "--", color=colour, linewidth=1.4)
        axis.plot(curve.step, 100 * curve.test, "-", color=colour, linewidth=2)
        train, test = 100 * curve.train.iloc[-1], 100 * curve.test.iloc[-1]
        ends[f"{label}: test {test:.0f} %, gap {train - test:.0f}"] = (test, colour)
        lows += [100 * curve.train.min(), 100 * curve.test.min()]
    axis.set(xlabel="training step", ylabel="accuracy (%)",
             ylim=(max(-2, 5 * (min(lows) // 5) - 2), 102),
             xlim=(0, max(curve.step.max() for curve in curves.values())))
    label_ends(axis, ends)
    axis.legend(handles=[Line2D([], [], color=GREY, linestyle="--", label="train: the support images"),
                         Line2D([], [], color=GREY, linewidth=2, label="test")],
                loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    about = [curve.attrs for curve in curves.values()]
    where = list(dict.fromkeys(f"{a['dataset']}, {count(a['shots'], 'shot')} per class, seed "
                               f"{a['seed']}" for a in about
                               if "dataset" in a))
    footer(figure, [a.get("backbone") for a in about], *where)
    frame(axis)
    return figure


@matplotlib.rc_context(theme())
def ratio_over_steps(ratios, backbone: str | None = None) -> Figure:
    """A residual ratio while it is learned: {label: its value after each training step}, each in
    [0, 1]. Where lines end together the labels say which is which.
    """
    figure = Figure(figsize=(8.5, 4.2))
    axis = figure.subplots()
    ends = {}
    for colour, style, (label, values) in zip(cycle(DEEP), cycle(("-", "--", "-.", ":")),
                                              ratios.items()):
        axis.plot(range(1, len(values) + 1), values, style, color=colour, linewidth=2)
        ends[f"{label}: {values[-1]:.2f}"] = values[-1], colour
    axis.set(xlabel="training step", ylabel="residual ratio α", ylim=(-0.02, 1.02),
             xlim=(0, max(map(len, ratios.values()))))
    label_ends(axis, ends)
    footer(figure, [backbone])
    frame(axis)
    return figure


@matplotlib.rc_context(theme())
def alpha_history(tried, zero_shot: float, backbone: str | None = None,
                  steps: int | None = None) -> Figure:
    """The ratios tried so far, {α: (train, validation accuracy)}, the last of them marked;
    accuracies in [0, 1].

    zero_shot: the validation accuracy of zero-shot CLIP, which is what α = 0 gives. steps: of each
        training.
    """
    figure = Figure(figsize=(7.5, 3.9))
    axis = figure.subplots()
    alphas, now = sorted(tried), list(tried)[-1]
    colour, values = COLOURS["clip-adapter"], {a: (100 * t, 100 * v) for a, (t, v) in tried.items()}
    axis.axhline(100 * zero_shot, color=GREY, linestyle="--", linewidth=1.5)
    axis.axvline(now, color=colour, linewidth=6, alpha=0.15)
    for which, style in enumerate(({"linestyle": "--", "marker": "o", "markerfacecolor": "white"},
                                   {"marker": "o"})):
        axis.plot(alphas, [values[a][which] for a in alphas], color=colour, linewidth=1.6,
                  markersize=5, **style)
    axis.plot([now, now], values[now], "o", color=colour, markersize=9, zorder=4)
    axis.set(xlabel="residual ratio α  (0: zero-shot CLIP, 1: the adapter alone)",
             ylabel="accuracy (%)", xlim=(-0.03, 1.03),
             ylim=(max(-2, min(100 * zero_shot, *(min(v) for v in values.values())) - 8), 103))
    axis.set_title(f"α = {now:g}: train {values[now][0]:.1f} %, validation {values[now][1]:.1f} %",
                   color=ink(colour))
    label_ends(axis, {"train": (values[alphas[-1]][0], colour),
                      "validation": (values[alphas[-1]][1], colour),
                      "zero-shot, validation": (100 * zero_shot, GREY)})
    footer(figure, [backbone], f"{count(len(tried), 'ratio')} "
                               f"tried{f', {steps} steps each' if steps else ''}")
    frame(axis)
    return figure


@matplotlib.rc_context(theme())
def settings_tried(tried, title: str = "", backbone: str | None = None) -> Figure:
    """What each of some settings reached, a row each: {label: {"train": …, "validation": …}},
    accuracies in [0, 1].

    The last is the current one and printed in bold; "test" is drawn too where it is given.
    """
    # sign, face, size
    marks = {"train": ("o", "white", 8), "validation": ("D", None, 8), "test": ("*", "#111111", 11)}
    figure = Figure(figsize=(8.5, 0.34 * len(tried) + 1.5))
    axis = figure.subplots()
    for row, (label, found) in enumerate(tried.items()):
        colour = GREY if label in ("zero-shot", NAMES["zero-shot"]) else COLOURS["clip-adapter"]
        axis.plot([100 * min(found.values()), 100 * max(found.values())], [row, row], color=colour,
                  linewidth=1, alpha=0.5)
        for split, value in found.items():
            marker, face, size = marks[split]
            axis.plot([100 * value], [row], marker, color=colour, markerfacecolor=face or colour,
                      markersize=size, linestyle="none")
        told = ", ".join(f"{split} {100 * value:.0f}" for split, value in found.items())
        axis.text(1.015, row, f"{told} %", va="center", fontsize=9, color=ink(colour),
                  transform=axis.get_yaxis_transform())
    axis.set_yticks(range(len(tried)), tried)
    axis.get_yticklabels()[-1].set_fontweight("bold")
    low = 10 * (100 * min(min(found.values()) for found in tried.values()) // 10)
    axis.set(ylim=(len(tried) - 0.5, -0.5), xlim=(low - 2, 102), xlabel="accuracy (%)")
    axis.set_title(title, loc="left")
    shown = [split for split in marks if any(split in found for found in tried.values())]
    signs = [Line2D([], [], linestyle="none", marker=marks[split][0], color=GREY, label=split,
                    markersize=marks[split][2], markerfacecolor=marks[split][1] or GREY)
             for split in shown]
    figure.legend(handles=signs, loc="upper right", ncols=len(shown), frameon=False,
                  borderaxespad=0.1, columnspacing=1,
                  handletextpad=0.1)  # at the figure's corner: above the axis it would meet the title
    footer(figure, [backbone], "one seed")
    frame(axis)
    return figure


@matplotlib.rc_context(theme())
def ratio_distributions(values, backbone: str | None = None, bins: int = 40) -> Figure:
    """How ratios are spread over [0, 1], {label: 1-D array}: a histogram each, its median marked
    and written.
    """
    import numpy
    figure = Figure(figsize=(7.5, 0.8 * len(values) + 1.2), layout="constrained")
    axes = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, ratios) in zip(axes, values.items()):
        ratios = as_array(ratios).astype(float)
        axis.hist(ratios, bins, range=(0, 1), weights=numpy.full(len(ratios), 1 / len(ratios)),
                  color=COLOURS.get(label, PALETTE[0]))
        middle = float(numpy.median(ratios))
        axis.axvline(middle, color="#111111", linewidth=1.2)
        axis.text(1.01, 0.5, f"median {middle:.2f}\nN = {len(ratios)}", transform=axis.transAxes,
                  fontsize=9, va="center")
        axis.set_ylabel(NAMES.get(label, label), rotation=0, ha="right", va="center")
        axis.set(yticks=[], xlim=(0, 1))
        axis.grid(axis="y", visible=False)
    axes[-1].set_xlabel("residual ratio")
    footer(figure, [backbone], "height: share of the values")
    return figure
