"""Figures of the feature space: t-SNE panels, and what is measured where they can only be looked at."""
import matplotlib
import seaborn

from ..devices import as_array
from ..naming import count
from .style import GREY, PALETTE, PLACES, Figure, footer, ink, label_points, theme

MEASURES = {"silhouette": "silhouette (cosine)", "fisher": "Fisher ratio", "purity": "k-NN purity"}
MARKERS = "os^vDPXp<>"
MOST_LABELS = 20  # more class names than this cover the points


@matplotlib.rc_context(theme())
def manifold(panels, labels, classnames, backbone: str | None = None, note: str = "") -> Figure:
    """t-SNE panels, {title: [N, 2]}, that share labels [N] and colours; class names at the medians
    of their points.

    Distances between groups and sizes of groups mean nothing in t-SNE, so there are no ticks. Up to
    20 names are written.
    """
    import numpy
    labels = as_array(labels)
    classes = numpy.unique(labels).tolist()
    colours = PALETTE if len(classes) <= len(PALETTE) else seaborn.husl_palette(len(classes)).as_hex()
    columns = 2 if len(panels) > 3 else len(panels)  # three fit on a screen in one row only
    rows = -(-len(panels) // columns)
    width, height = ((6.5, 5.2), (9.6, 4.4), (9.6, 3.5))[columns - 1]
    figure = Figure(figsize=(width, height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, panels.items()):
        points = as_array(points)
        if points.shape != (len(labels), 2):
            raise ValueError(f"Panel '{title}' has points of shape {list(points.shape)} but there "
                             f"are {len(labels)} labels; give one [x, y] for each of the same images.")
        for i, c in enumerate(classes):
            here = points[labels == c]
            axis.scatter(*here.T, s=22, color=colours[i], marker=MARKERS[i % len(MARKERS)], alpha=0.8,
                         # the palette's pale colours need an edge
                         edgecolor=ink(colours[i]), linewidth=0.4)
        axis.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)",
                 ylabel="t-SNE 2 (no unit)")
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
    footer(figure, [backbone], count(len(labels), "image"), *([note] if note else []))
    if len(classes) <= MOST_LABELS:
        figure.draw_without_rendering()
        for axis, points in zip(axes.flat, panels.values()):
            points = as_array(points)
            medians = [numpy.median(points[labels == c], axis=0) for c in classes]
            names = label_points(axis, medians, [classnames[c] for c in classes],
                                 (((0, 0), "center", "center"), *PLACES), fontweight="bold")
            for name, colour in zip(names, colours):
                name.set_color(ink(colour))
    return figure


@matplotlib.rc_context(theme())
def measures(table, backbone: str | None = None) -> Figure:
    """What `manifold.manifold_measures` found, stage by stage: a panel each, a dot per seed, their
    mean with one deviation.

    table: columns stage, seed, and one or more of silhouette, fisher and purity; higher is better
        separated in each.
    """
    shown = [column for column in MEASURES if column in table]
    if "stage" not in table or not shown:
        raise ValueError(f"The table needs a column 'stage' and one of {', '.join(MEASURES)}; it has "
                         f"{', '.join(map(str, table.columns))}.")
    stages = list(table.stage.unique())
    figure = Figure(figsize=(9.6, 0.45 * len(stages) + 1.5), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, shown):
        for row, stage in enumerate(stages):
            values = table[table.stage == stage][column]
            axis.scatter(values, [row] * len(values), s=18, color=GREY, alpha=0.5, linewidth=0)
            sd = values.std() if len(values) > 1 else 0
            axis.errorbar([values.mean()], [row], xerr=[sd], fmt="o", color=PALETTE[0], capsize=4,
                          markersize=7)
        axis.set(xlabel=MEASURES[column], ylim=(len(stages) - 0.5, -0.5))
        axis.margins(x=0.12)
        axis.locator_params(axis="x", nbins=4)  # three decimals leave room for no more
    axes[0].set_yticks(range(len(stages)), stages)
    seeds = table.seed.nunique() if "seed" in table else 1
    bars = ", bars: one standard deviation" if seeds > 1 else ""
    footer(figure, table.backbone.unique() if "backbone" in table else [backbone],
           f"mean of {count(seeds, 'seed')}{bars}", "higher: better separated")
    return figure
