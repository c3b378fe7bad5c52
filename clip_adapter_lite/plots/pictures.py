"""Figures of pictures and prompts: the support images of an episode, and what a prompt makes of a
test picture.
"""
import matplotlib

from ..naming import count
from .style import COLOURS, GREY, PALETTE, Figure, footer, theme


@matplotlib.rc_context(theme())
def prompt_result(bank, weights, classnames, image: int = 0, top: int = 5, picture=None) -> Figure:
    """Left the `top` probabilities of one test picture, right the accuracy of these prompts beside
    the bank's own.

    weights: W [K, D] of K class names, the first C of them for the bank's C classes in their order;
    further ones are distractors, wrong for every picture. image: its row in the test split.
    picture: the picture (PIL), drawn if it is given.
    Raises ValueError for fewer names than the bank has classes, or an image that is not there.
    """
    from ..evaluation import accuracy
    from ..methods.base import cosine_logits
    test, own, classnames = bank.splits["test"], bank.text_features.float(), list(classnames)
    if len(classnames) < len(bank.classnames) or len(weights) != len(classnames):
        raise ValueError(f"{bank.dataset} has {len(bank.classnames)} classes, so it needs as many "
                         "names in their order (more are distractors) and a row of W for each; "
                         f"got {count(len(classnames), 'name')} and {count(len(weights), 'row')}.")
    if not 0 <= image < len(test):
        raise ValueError(f"image must be from 0 to {len(test) - 1}, a row of {bank.dataset}'s test "
                         f"split; got {image}.")
    features = test.view().float()
    logits = cosine_logits(features, weights.float(), bank.logit_scale)
    mine, theirs = (100 * accuracy(found, test.labels) for found in
                    (logits, cosine_logits(features, own, bank.logit_scale)))
    chance, best = logits[image].softmax(0).topk(min(top, len(classnames)))
    truth = int(test.labels[image])
    ratios = [3, 1.1] if picture is None else [1.3, 3, 1.1]
    figure = Figure(figsize=(9.6, 0.33 * len(best) + 1.9), layout="constrained")
    *shown, left, right = figure.subplots(1, len(ratios), width_ratios=ratios)
    for axis in shown:
        axis.imshow(picture, cmap="gray")
        axis.set_axis_off()
    best, chance = best.tolist(), (100 * chance).tolist()
    bars = left.barh(range(len(best)), chance,
                     color=[PALETTE[0] if i == truth else "#bbbbbb" for i in best])
    labels = [f"{p:.1f}" + (" (true class)" if i == truth else "") for p, i in zip(chance, best)]
    left.bar_label(bars, labels, padding=3, fontsize=9)
    left.set_yticks(range(len(best)), [_short(classnames[i]) for i in best])
    left.set(ylim=(len(best) - 0.4, -0.6), xlim=(0, 125), xticks=range(0, 101, 25),
             xlabel="probability (%)", title=f"test picture {image}: "
                                             f"{_short(bank.classnames[truth], 40)}")
    left.grid(axis="y", visible=False)
    bars = right.bar(["these\nprompts", "the\nbank's"], [mine, theirs],
                     color=[PALETTE[0], COLOURS["zero-shot"]], width=0.65)
    right.bar_label(bars, [f"{mine:.1f}", f"{theirs:.1f}"], fontsize=10, padding=2)
    right.set(ylim=(0, 112), yticks=range(0, 101, 25), ylabel="test accuracy (%)",
              title=count(len(test), "picture"))
    right.grid(axis="x", visible=False)
    footer(figure, [bank.backbone], f"{bank.dataset}; a prompt chosen by these bars would be "
                                    "chosen on test")
    return figure


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[:most - 1] + "…"


@matplotlib.rc_context(theme())
def episode_grid(dataset, shots: int, seed: int = 1) -> Figure:
    """The support pictures of an episode of an `ImageDataset`, a row per class: those of a bank
    built from it.

    Raises BankError if a class has fewer training pictures than `shots`, or shots is below 1.
    """
    import numpy
    from PIL import Image

    from ..encoding import open_image
    drawn, classes = dataset.draw("train", shots, seed), len(dataset.classnames)
    chosen = [[picture for picture, _ in drawn[c * shots:(c + 1) * shots]] for c in range(classes)]
    side, gap = 64, 4  # pixels of a tile, and between tiles
    mosaic = numpy.full((classes * (side + gap), shots * (side + gap), 3), 255, numpy.uint8)
    for r, line in enumerate(chosen):
        for c, picture in enumerate(line):
            y, x = r * (side + gap), c * (side + gap)
            small = open_image(picture).resize((side, side), Image.Resampling.BILINEAR)
            mosaic[y:y + side, x:x + side] = small
    tile = min(0.55, 8.2 / shots, 12 / classes)  # inches
    figure = Figure(figsize=(max(4.5, shots * tile + 1.6), classes * tile + 1.1), layout="constrained")
    axis = figure.subplots()
    axis.imshow(mosaic, extent=(0, shots, classes, 0), interpolation="antialiased", aspect="equal")
    axis.set_yticks([r + 0.5 for r in range(classes)], [_short(name) for name in dataset.classnames],
                    fontsize=max(9, min(11, 50 * tile)))
    axis.set_xticks([c + 0.5 for c in range(shots)], [str(c + 1) for c in range(shots)])
    axis.set(title=f"{dataset.name}: {count(shots, 'shot')} per class, seed {seed}", xlabel="shot")
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.supxlabel("pictures, not features", fontsize=9, color=GREY)
    return figure
