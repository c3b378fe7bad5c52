"""Imported by the kernels of nbval's runs: writes down which titles of a notebook's figures touch each other or are cut
off, by matplotlib's own boxes.
"""
import os
from functools import wraps
from itertools import combinations

from matplotlib.figure import Figure

APART = 4  # pixels that titles keep between them


def faults(figure: Figure) -> list[str]:
    """What is wrong with the titles of a figure as it was last drawn."""
    titles = [title for axis in figure.axes for title in (axis.title, axis._left_title, axis._right_title)]
    titles = [title for title in (figure._suptitle, *titles) if title and title.get_text().strip() and title.get_visible()]
    boxes = [(title.get_text(), title.get_window_extent()) for title in titles]
    cut = [text for text, box in boxes if not (figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1
                                              and figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1)]
    return ([f"'{text}' is cut off" for text in cut]
            + [f"'{a}' touches '{b}'" for (a, one), (b, other) in combinations(boxes, 2)
               if one.padded(APART / 2).overlaps(other.padded(APART / 2))])


if "TITLES" in os.environ:
    drawn = Figure.savefig

    @wraps(drawn)
    def savefig(self, *given, **options):
        drawn(self, *given, **options)
        with open(os.environ["TITLES"], "a", encoding="utf-8") as file:
            file.writelines([" ".join(fault.split()) + "\n" for fault in faults(self)] or ["fine\n"])

    Figure.savefig = savefig
