"""docs/which-method.md from the reference results: which method when, and what one more picture is
worth.

    python -m clip_adapter_lite.making.guide

Everything on the page is computed here from `cal.reference()`; a test holds the page to it.
"""
from pathlib import Path

from ..evaluation import paired_bootstrap
from ..experiments.reference import reference
from ..files import whole
from ..naming import NAMES, features_of

PAGE = Path(__file__).parents[2] / "docs" / "which-method.md"
ZERO, UNTRAINED = "zero-shot", ("zero-shot", "tip-adapter", "gda")


def complete(table):
    """Seeds 1 to 3, which every method was run with, of the banks that have all numbers of shots."""
    most = table.shots.max()
    return table[table.seed <= 3].groupby("dataset").filter(lambda rows: rows.shots.max() == most)


def leaders(rows, methods) -> tuple[str, list[str]]:
    """The method with the highest mean accuracy, and the others that a paired bootstrap cannot tell
    from it.
    """
    means = rows[rows.method.isin(methods)].groupby("method").accuracy.mean()
    best = means.idxmax()
    others = means.drop(best).sort_values(ascending=False).index
    return best, [other for other in others
                  if paired_bootstrap(rows, best, other).verdict == "cannot tell"]


def listed(names, most: int = 4) -> str:
    """The first names and how many more there are; a name may hold a comma."""
    names = list(names)
    return "; ".join(names[:most]) + (f"; {len(names) - most} more" if len(names) > most else "")


def page() -> str:
    """The page, as Markdown."""
    table = complete(reference())
    banks, shots = table.dataset.nunique(), sorted(table.shots.unique())
    methods = list(dict.fromkeys(table.method))
    seen = table.groupby(["method", "shots"]).labelled.mean()
    mean = 100 * table.groupby(["method", "shots"]).accuracy.mean()
    name = lambda method: NAMES.get(method, method)
    held = [m for m in methods if m != ZERO and seen[m, shots[0]] > shots[0]]  # select on validation
    groups = {"any method": [m for m in methods if m != ZERO],
              "shots alone, no validation": [m for m in methods if m not in (ZERO, *held)],
              "no training": [m for m in UNTRAINED if m != ZERO]}
    heads = ["1 shot", *(f"{s} shots" for s in shots[1:])]
    line = lambda cells: f"| {' | '.join(map(str, cells))} |"
    lines = [
        "# Which method when, and what one more picture is worth", "",
        f"Computed from the reference results (`cal.reference()`): {banks} banks that have "
        f"{shots[-1]} shots, seeds 1 to 3, features of the {features_of('pocket')}. These numbers show "
        "how the methods behave on these features and say nothing about OpenAI's CLIP. Methods are "
        "ranked by test accuracy, so a winner's number flatters it a little; settings were chosen on "
        "validation images or fixed before. Your own pictures decide: `clip-adapter-lite compare "
        "--banks YOURS`.", "",
        "## Which method when", "",
        "The best mean, and in brackets what a paired bootstrap cannot tell from it.", "",
        line(["", *groups]), line(["---"] * (1 + len(groups)))]
    for s, head in zip(shots, heads):
        cells = []
        for group in groups.values():
            best, near = leaders(table[table.shots == s], group)
            cells.append(f"**{name(best)}** {mean[best, s]:.1f}"
                         + (f" ({listed(map(name, near))})" if near else ""))
        lines.append(line([head, *cells]))
    lines += ["", "Zero-shot CLIP, which needs no picture, has "
              f"{mean[ZERO, shots[0]]:.1f} %.", "",
              "## Accuracy, and how many labelled images a class it took", "",
              "Test accuracy in % after the labelled images a class that the method looked at, "
              "validation included where it selects by it.", "",
              line(["method", *heads]), line(["---"] * (1 + len(heads)))]
    lines += [line([name(m), *(f"{mean[m, s]:.1f} ({seen[m, s]:.3g})" for s in shots)])
              for m in methods]
    steps = list(zip(shots, shots[1:]))
    lines += ["", "## What one more labelled image a class is worth", "",
              "Points of accuracy gained from one number of shots to the next, over the labelled "
              "images a class that were added (validation included).", "",
              line(["method", *(f"{a} → {b} shots" for a, b in steps)]),
              line(["---"] * (1 + len(steps)))]
    lines += [line([name(m), *(f"{(mean[m, b] - mean[m, a]) / (seen[m, b] - seen[m, a]):+.2f}"
                               for a, b in steps)]) for m in methods if m != ZERO]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with whole(PAGE) as partial:
        partial.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
