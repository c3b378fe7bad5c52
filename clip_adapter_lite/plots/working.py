"""Figures of a classifier at work: what it takes for what, and what it rejects or cannot tell."""
import matplotlib

from ..devices import as_array
from ..naming import count
from .pictures import _short
from .style import COLOURS, GREY, PALETTE, Figure, footer, legend_above, theme

MOST = 30  # classes that are named on the axes


@matplotlib.rc_context(theme())
def confusion(report, title: str, backbone: str | None = None, most: int = MOST) -> Figure:
    """A confusion matrix of a `Report`, each row in shares of its class, the diagonal in grey.

    Of more than `most` classes those are drawn that make up the pairs confused most often.
    """
    import numpy
    matrix = numpy.asarray(report.confusion)
    wrong = matrix - numpy.diag(matrix.diagonal())
    classes, chosen = len(matrix), numpy.arange(len(matrix))
    if classes > most:
        named = {}  # an ordered set: true and predicted class of the worst pair, of the next …
        for pair in numpy.argsort(-wrong, axis=None, kind="stable").tolist():
            named |= dict.fromkeys(divmod(pair, classes))
            if len(named) >= most:
                break
        chosen = numpy.sort(list(named)[:most])
    part = matrix[numpy.ix_(chosen, chosen)]
    shares = 100 * part / numpy.maximum(matrix.sum(1)[chosen], 1)[:, None]
    off = numpy.ma.masked_where(numpy.eye(len(part), dtype=bool), shares)
    side = min(10, 3.2 + 0.28 * len(part))
    figure = Figure(figsize=(side, side * 0.88), layout="constrained")
    axis = figure.subplots()
    axis.imshow(numpy.ma.masked_where(~numpy.eye(len(part), dtype=bool), shares), cmap="Greys",
                vmin=0, vmax=250)
    drawn = axis.imshow(off, cmap="Oranges", vmin=0, vmax=max(10, float(shares[~numpy.eye(
        len(part), dtype=bool)].max(initial=0))))
    small = 9 if len(part) <= 12 else 7
    for row, column in zip(*part.nonzero()):
        text = part[row, column]
        dark = row != column and shares[row, column] > 0.6 * drawn.norm.vmax
        axis.text(column, row, str(text), ha="center", va="center", fontsize=small,
                  color="white" if dark else "#222222")
    names = [_short(report.classnames[c], 22) for c in chosen]
    axis.set_xticks(range(len(part)), names, rotation=90, fontsize=9)
    axis.set_yticks(range(len(part)), names, fontsize=9)
    axis.set(xlabel="predicted", ylabel="true class")
    axis.grid(False)
    axis.tick_params(length=0)
    which = f"\nthe {most} of {classes} classes of the pairs confused most" if classes > most else ""
    axis.set_title(f"{title}: {count(report.images, 'test image')}, "
                   f"{100 * report.accuracy:.1f} % right{which}", loc="left")
    figure.colorbar(drawn, ax=axis, shrink=0.6, label="% of the true class")
    footer(figure, [backbone], "numbers count images")
    return figure


@matplotlib.rc_context(theme())
def rejection(found, threshold: float | None = None, backbone: str | None = None) -> Figure:
    """The scores of an `OpenSet`: known pictures above, left-out ones below, and the threshold.

    threshold: another than the calibrated one. backbone: the one that it was measured with.
    """
    import numpy
    threshold = found.threshold if threshold is None else threshold
    backbone = backbone or found.backbone
    known, unknown = (as_array(scores) for scores in (found.known, found.unknown))
    edges = numpy.histogram_bin_edges(numpy.concatenate([known, unknown]), 40)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    for scores, name, colour in ((known, "known classes", PALETTE[0]),
                                 (unknown, "left-out classes", COLOURS["clip-adapter"])):
        share = 100 * numpy.histogram(scores, edges)[0] / len(scores)
        axis.stairs(share, edges, fill=True, alpha=0.45, color=colour,
                    label=f"{name} ({len(scores)}): {100 * (scores < threshold).mean():.1f} % "
                          "rejected")
    axis.axvline(threshold, color=GREY, linestyle="--")
    axis.text(threshold, axis.get_ylim()[1], " kept →", va="top", color=GREY, fontsize=9)
    axis.set(xlabel="highest logit", ylabel="% of the test images")
    legend_above(figure, axis)
    axis.set_title(f"None of these: AUROC {found.auroc:.3f}", loc="left")
    footer(figure, [backbone])
    return figure


@matplotlib.rc_context(theme())
def set_sizes(sets, labels, promised: float, backbone: str | None = None) -> Figure:
    """How large prediction sets are, in colour those that hold the true class; sets: truth values
    [N, C], labels [N].
    """
    import numpy
    sets, labels = as_array(sets), as_array(labels)
    held, sizes = sets[numpy.arange(len(labels)), labels], sets.sum(1)
    most = min(int(sizes.max(initial=1)), 12)  # larger ones share the last bar
    shown = numpy.minimum(sizes, most)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    bars = [100 * numpy.bincount(shown[which], minlength=most + 1) / len(labels)
            for which in (held, ~held)]
    axis.bar(range(most + 1), bars[0], color=PALETTE[0], label="the true class is in the set")
    axis.bar(range(most + 1), bars[1], bottom=bars[0], color=COLOURS["clip-adapter"],
             label="it is not")
    axis.set_xticks(range(most + 1), [*map(str, range(most)),
                                      f"{most}{'' if sizes.max(initial=0) <= most else ' or more'}"])
    axis.set(xlabel="classes in the set", ylabel="% of the test images")
    axis.grid(axis="x", visible=False)
    legend_above(figure, axis)
    axis.set_title(f"promised {100 * promised:g} %, found {100 * held.mean():.1f} %; mean size "
                   f"{sizes.mean():.2f}", loc="left")
    footer(figure, [backbone])
    return figure
