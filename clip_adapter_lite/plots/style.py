"""The house style, set here and nowhere else: seaborn's colour-blind palette, one colour a method
everywhere.
"""
import base64
import io
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.figure
import seaborn
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox

from ..files import located, may_write, whole
from ..naming import features_of

PALETTE = seaborn.color_palette("colorblind").as_hex()
GREY = "#555555"
WIDTH = 10  # inches: the widest a figure may be, so that a laptop shows it at 100 %
COLOURS = {"zero-shot": GREY, "linear-probe": PALETTE[0], "coop": PALETTE[2],
           "clip-adapter": PALETTE[3], "tip-adapter": PALETTE[4],
           "tip-adapter(finetune=True)": PALETTE[5], "clip-adapter(branch=text)": PALETTE[1],
           "clip-adapter(branch=both)": PALETTE[9],
           # of Tol's muted scheme, as the palette's last are too pale for a line
           "clip-adapter(alpha=0.2)": "#882255", "clip-adapter(alpha=learned)": "#332288"}
# the rest of Tol's muted scheme, first those that colour-blind eyes tell apart best
OTHERS = ["#cc6677", "#88ccee", "#117733", "#ddcc77", "#44aa99", "#999933", "#aa4499"]
MARKERS = dict(zip(COLOURS, "oosoDDv^XP"))  # a second sign beside the colour


MARK = "clip-adapter-lite"  # in the pictures that `save` writes


class Figure(matplotlib.figure.Figure):
    """matplotlib's, which also shows itself as the last expression of a cell: no pyplot, a light
    ground, and alt text.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # keeps its renderer; without it, each text that is measured makes its own
        FigureCanvasAgg(self)

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        png, words = io.BytesIO(), describe(self)
        self.savefig(png, format="png", facecolor="white")
        return ({"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": words},
                {"image/png": {"alt": words}, "needs_background": "light"})

    def svg(self) -> str:
        """The figure on white as SVG: sooner made than a PNG, and sharp at any size. Equal figures
        give equal text.
        """
        drawn = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "clip-adapter-lite"}):
            self.savefig(drawn, format="svg", facecolor="white", metadata={"Date": None})
        return drawn.getvalue()


def theme() -> dict:
    """matplotlib settings of the house style, for `matplotlib.rc_context(theme())`."""
    return {**seaborn.axes_style("whitegrid"), **seaborn.plotting_context("notebook"),
            "figure.dpi": 110,
            "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e6e6e6",
            "axes.titlesize": 11,
            "axes.titley": 1.0,  # not looked for, as no axis has anything at its top
            "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10}


def save(figure: matplotlib.figure.Figure, path: str | Path) -> Path:
    """Write the figure under a temporary name and rename it. Raises OSError, one sentence, if the
    disk does not take it.
    """
    path = located(path)
    kind = path.suffix[1:].lower() or "png"
    mark = {"metadata": {"Software": MARK}} if kind == "png" else {}
    with whole(path) as partial:
        figure.savefig(partial, format=kind, dpi=150, bbox_inches="tight", **mark)
    return path


def may_save(path: str | Path) -> None:
    """Raise OSError, one sentence, if a PNG lies at `path` that `save` did not write."""
    def ours(there: Path) -> bool:
        start = there.read_bytes()[:4096]
        return start.startswith(b"\x89PNG") and MARK.encode() in start
    may_write(path, ours, "picture")


def colours_of(names: Iterable[str]) -> dict:
    """A colour for each name: a method's own, and for others colours that no method has."""
    others = [name for name in names if name not in COLOURS]
    return COLOURS | dict(zip(others, OTHERS if len(others) <= len(OTHERS)
                              else seaborn.husl_palette(len(others)).as_hex()))


def ink(colour: str) -> str:
    """A colour darkened until text in it reads well on white, as points and lines of the palette
    already do.
    """
    return to_hex([0.65 * part for part in to_rgb(colour)])


def footer(figure: Figure, backbones: Iterable[str | None], *notes: str) -> None:
    """Say under the figure whose features it shows, and what else is worth knowing."""
    known = [features_of(backbone) for backbone in dict.fromkeys(backbones) if backbone]
    text = "; ".join([f"features: {', '.join(known) or 'not stated (give backbone=)'}", *notes])
    figure.supxlabel(textwrap.fill(text, int(14 * figure.get_figwidth()), break_on_hyphens=False),
                     fontsize=9, color=GREY)


def legend_above(figure: Figure, axis) -> None:
    """The axis's legend above the figure, in as few rows as its width allows, of about equal length."""
    handles, labels = axis.get_legend_handles_labels()
    in_a_row = max(1, int(figure.get_figwidth() / (0.65 + 0.085 * max(map(len, labels)))))
    figure.legend(handles, labels, loc="outside upper center",
                  ncols=-(-len(labels) // -(-len(labels) // in_a_row)), frameon=False)


def describe(figure: Figure) -> str:
    """The figure in words, as alt text: its titles, axis labels, categories and all that is written
    into it.
    """
    words = []
    for axis in figure.axes:
        labels = filter(None, (axis.get_ylabel(), axis.get_xlabel()))
        words += [axis.get_title(), axis.get_title("left"), " over ".join(labels)]
        ticks = [tick.get_text() for side in (axis.xaxis, axis.yaxis) for tick in side.get_ticklabels()
                 if isinstance(side.get_major_locator(), FixedLocator)]
        words += [tick for tick in ticks if not tick.replace(".", "").isdigit()]
        words += [text.get_text() for text in axis.texts]
    words += [text.get_text() for legend in figure.legends
              for text in legend.get_texts()] + [figure.get_supxlabel()]
    return "; ".join(dict.fromkeys(" ".join(w.split()) for w in words if w.strip()))


def label_ends(axis, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write at the right of the axis, at their heights and moved apart where they would meet, the
    names of lines.

    ends: name → (y, colour). Set the limits of the axis before.
    """
    from sklearn.isotonic import isotonic_regression
    low, high = axis.get_ylim()
    # 14 points; the axis takes 0.7 of the height
    gap = 14 * (high - low) / (0.7 * 72 * axis.figure.get_figheight())
    names = sorted(ends, key=lambda name: ends[name][0])
    # heights at least a gap apart: rising after a stair is taken off
    steps = [i * gap for i in range(len(names))]
    free = isotonic_regression([ends[name][0] - step for name, step in zip(names, steps)])
    for name, height, step in zip(names, free, steps):
        axis.text(1.015, height + step, name, color=ink(ends[name][1]), fontsize=10, va="center",
                  transform=axis.get_yaxis_transform())


def frame(axis, top: float = 0.4, bottom: float = 0.82) -> None:
    """Room for the labels at the left and right of a finished figure's one axis; top and bottom in
    inches.

    The layout engine finds the same in 40 ms, which a figure that follows a slider has not.
    """
    width, height = axis.figure.get_size_inches()
    left, right = (max(text.get_window_extent().width for text in texts) / axis.figure.dpi + 0.2
                   for texts in (axis.get_yticklabels(), axis.texts))
    left += 0.3 * bool(axis.get_ylabel())
    axis.figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)


# Where a label may stand beside its point, best first: offset in points, horizontal and vertical
# alignment.
PLACES = (((6, 0), "left", "center"), ((-6, 0), "right", "center"), ((5, 5), "left", "bottom"),
          ((-5, 5), "right", "bottom"), ((5, -5), "left", "top"), ((-5, -5), "right", "top"),
          ((0, 7), "center", "bottom"), ((0, -7), "center", "top"))


def label_points(axis, points, names: Iterable[str], places=PLACES, bars=(), **style) -> list:
    """Write each name beside its point [x, y], where it covers the least of others, their names and
    `bars`; annotations.

    bars: line segments [[x, y], [x, y]]. The figure must be finished but for this and laid out, so
        that places in pixels
    are known: call `figure.draw_without_rendering()` before.
    """
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axis.transData.transform(points)]
    taken += [Bbox(axis.transData.transform(bar)).padded(1) for bar in bars]
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    written = []
    for point, name in zip(points, names):
        text = axis.annotate(name, point, (0, 0), textcoords="offset points", path_effects=halo,
                             **{"fontsize": 9, "color": "#222222", **style})
        text.set_in_layout(False)

        def covered(place, text=text):
            text.xyann, horizontal, vertical = place
            text.set(ha=horizontal, va=vertical)
            box = text.get_window_extent()
            shared = [both for other in taken if (both := Bbox.intersection(box, other))]
            inside = Bbox.intersection(box, axis.bbox)
            lost = box.width * box.height - (inside.width * inside.height if inside else 0)
            return 10 * lost + sum(both.width * both.height for both in shared)
        covered(min(places, key=covered))
        taken.append(text.get_window_extent())
        written.append(text)
    return written
