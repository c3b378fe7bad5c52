"""Interactive figures for notebooks: controls over a figure that is drawn again when one of them
changes.

Each widget is a thin shell over a function of `plots` or of the library, and calls it with what its
controls say. Controls work from the keyboard: sliders by arrow keys, boxes and buttons by Tab and
Space, text by Enter (JupyterLab takes the arrow keys from drop-down lists, so there are none:
jupyter-widgets/ipywidgets #3912). The figure is an SVG with alt text on its own light ground, so
that it reads in a dark theme too. Nothing is printed; what cannot be is one sentence above the
figure.
"""
import gc
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from html import escape

import ipywidgets

from . import plots
from .devices import best_device, threads
from .naming import count

PAPER = "background: white; padding: 6px; border-radius: 4px; max-width: 100%; box-sizing: border-box"
# the theme's own text colour
NOTE = "border-left: 4px solid #d55e00; padding-left: 8px; margin: 4px 0; line-height: 1.4"
MOST_ROWS = 8  # settings that the ablation explorer remembers
# of trainings that answer within 0.3 s; README, "Recipes", tells what they lose
LIVE = {"steps": 15, "rate": 2e-3}


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside: a figure's objects would now and then set off a full one,
    longer than the move itself.

    They are young, and the small collection that follows finds them.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class Explorer(ipywidgets.VBox):
    """Controls over a figure. draw(**values): the Figure for the values of the `controls`, called
    at every change.

    figure: the one shown. message: the sentence of a ValueError, OSError, RuntimeError or
    FloatingPointError that drawing raised, empty otherwise; the figure then stays as it was. Any
    other exception is a fault of ours and not caught.
    """

    def __init__(self, draw: Callable[..., plots.Figure], **controls: ipywidgets.Widget):
        self.draw, self.controls, self.figure, self.message = draw, controls, None, ""
        self._said, self._picture = ipywidgets.HTML(), ipywidgets.HTML()
        for control in controls.values():
            control.observe(self._update, "value")
        row = ipywidgets.Box(list(controls.values()),
                             layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"))
        super().__init__([row, self._said, self._picture])
        self._update()

    @uncollected()
    def _update(self, _=None) -> None:
        try:
            with threads(2):  # more would only slow so small a training
                self.figure = self.draw(**{name: control.value
                                           for name, control in self.controls.items()})
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            self.message = str(error)
        else:
            self.message, drawn = "", b64encode(self.figure.svg().encode()).decode()
            alt, source = escape(plots.describe(self.figure)), f"data:image/svg+xml;base64,{drawn}"
            # as wide as the same figure in a static cell
            width = round(self.figure.get_figwidth() * self.figure.dpi)
            self._picture.value = f'<img alt="{alt}" src="{source}" width="{width}" style="{PAPER}">'
        opening = f'<p role="alert" style="{NOTE}">'
        self._said.value = f"{opening}{escape(self.message)}</p>" if self.message else ""


def _look(label: str, width: str = "300px", **options) -> dict:
    return dict(description=label, style={"description_width": "initial"}, layout=_place(width),
                **options)


def _place(width: str) -> ipywidgets.Layout:
    # room between the controls of a row
    return ipywidgets.Layout(width=width, margin="2px 18px 2px 2px")


def _slider(label: str, values, value) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=values, value=value,
                                      **_look(label, "330px", continuous_update=False))


def _choice(label: str, options) -> ipywidgets.ToggleButtons:
    return ipywidgets.ToggleButtons(options=options, description=label, layout=_place("auto"),
                                    style={"description_width": "initial", "button_width": "auto"})


def _box(label: str, on: bool, width: str = "auto") -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(on, indent=False, **_look(label, width))


def _ratio(value: float) -> ipywidgets.FloatSlider:
    return ipywidgets.FloatSlider(value=value, min=0, max=1, step=0.1, readout_format=".1f",
                                  **_look("Residual ratio α", "360px", continuous_update=False))


def _widths(dimensions: int) -> ipywidgets.SelectionSlider:
    """The bottleneck from D (none) to D/32; its value is the reduction."""
    return _slider("Bottleneck", [(f"D{'' if r == 1 else f'/{r}'} = {dimensions // r}", r)
                                  for r in (1, 2, 4, 8, 16, 32)
                                  if r <= dimensions], 4)


def prompt_playground(bank, backbone=None, pictures=None) -> Explorer:
    """Type templates and class names, and see `plots.prompt_result`: top-k of a test picture, and
    the accuracy.

    backbone: a loaded one; by default that of the bank is loaded when the words first change.
    pictures: the bank's test pictures (paths or PIL images), in its order, to show them too.
    """
    from .backbones import classifier_weights, shared_backbone
    from .encoding import open_image
    comma = ";" if any("," in name for name in bank.classnames) else ","
    own = " ; ".join(bank.templates), f"{comma} ".join(bank.classnames)

    @lru_cache(32)
    def weights(template: str, classnames: tuple[str, ...]):
        if (template, f"{comma} ".join(classnames)) == own:
            return bank.text_features
        if len(classnames) < len(bank.classnames):
            raise ValueError(f"There are {len(classnames)} class names but {bank.dataset} has "
                             f"{len(bank.classnames)} classes; write a name for each, in the "
                             f"bank's order, with '{comma}' between them.")
        loaded = backbone or shared_backbone(bank.backbone, bank.meta.get("weights_tag", ""),
                                             best_device())
        return classifier_weights(loaded, classnames, [part.strip() for part in template.split(";")])

    def draw(template: str, classnames: str, image: int):
        chosen = tuple(name.strip() for name in classnames.split(comma) if name.strip())
        picture = open_image(pictures[image]) if pictures is not None else None
        return plots.prompt_result(bank, weights(template, chosen), chosen, image, picture=picture)

    def words(value: str, label: str) -> ipywidgets.Text:
        return ipywidgets.Text(value, **_look(label, "98%", continuous_update=False))

    return Explorer(
        draw, template=words(own[0], "Template with {} for the name (several: ; between them)"),
        classnames=words(own[1], f"Class names ({'commas' if comma == ',' else comma} between them)"),
        image=ipywidgets.IntSlider(0, 0, len(bank.splits["test"]) - 1,
                                   **_look("Test picture", "420px", continuous_update=False)))


def episode_viewer(dataset=None) -> Explorer:
    """The support pictures for a number of shots and a seed: `plots.episode_grid`, on Fashion-MNIST
    by default.
    """
    if dataset is None:
        from .datasets import fashion_mnist
        dataset = fashion_mnist()
    labels = [label for _, label in dataset.splits["train"]]
    most = min(16, *(labels.count(c) for c in range(len(dataset.classnames))))
    steps = dict(continuous_update=False)
    return Explorer(lambda shots, seed: plots.episode_grid(dataset, shots, seed),
                    shots=ipywidgets.IntSlider(min(4, most), 1, most,
                                               **_look("Shots per class", **steps)),
                    seed=ipywidgets.IntSlider(1, 1, 10, **_look("Seed", **steps)))


def alpha_slider(episode) -> Explorer:
    """Train a CLIP-Adapter at the α of the slider, live, beside the ratios tried before:
    `plots.alpha_history`.

    A live training takes `LIVE`'s few steps, here and in the two explorers below, and their figures
    say so.
    Raises BankError for an episode without validation images, which is what α is judged on.
    """
    from .methods import CLIPAdapter, ZeroShot
    from .methods.base import need_validation
    need_validation(episode, "α")
    zero_shot, tried = ZeroShot().fit(episode).val_accuracy, {}

    def draw(alpha: float):
        fitted = CLIPAdapter(alpha=round(alpha, 2), **LIVE).fit(episode)
        tried.pop(fitted.alpha, None)  # the current one goes last
        tried[fitted.alpha] = fitted.accuracy(episode.support), fitted.val_accuracy
        return plots.alpha_history(tried, zero_shot, episode.backbone_name, LIVE["steps"])

    return Explorer(draw, alpha=_ratio(0.2))


def training_curve_explorer(episode) -> Explorer:
    """Train with or without the residual, at an α and a width, beside the setting before:
    `plots.training_curves`.
    """
    from .curves import training_curve
    from .methods import CLIPAdapter
    shown = {}

    def draw(residual: bool, alpha: float, reduction: int):
        alpha = round(alpha, 2) if residual else 1.0
        label = f"{f'α = {alpha:g}' if residual else 'no residual'}, D/{reduction}"
        before = [(f"before: {name}", old) for name, old in list(shown.items())[-1:] if name != label]
        shown.pop(label, None)
        method = CLIPAdapter(alpha=alpha, reduction=reduction, **LIVE)
        shown[label] = training_curve(method, episode, every=4)
        return plots.training_curves({label: shown[label], **dict(before)})

    residual = _box("Residual blend (off: α = 1)", True, "230px")
    alpha = _ratio(0.2)
    ipywidgets.dlink((residual, "value"), (alpha, "disabled"), lambda on: not on)
    return Explorer(draw, residual=residual, alpha=alpha,
                    reduction=_widths(episode.text_features.shape[1]))


def ablation_explorer(banks) -> Explorer:
    """Train an adapter of any branch, width, α and number of shots on a bank (seed 1):
    `plots.settings_tried`.

    Rows are kept for each bank and number of shots. Train and validation accuracies are shown; test
    ones are computed only when asked for, since settings chosen by them would be chosen on test.
    """
    from .methods import CLIPAdapter, ZeroShot
    banks, tried = {bank.dataset: bank for bank in banks}, {}

    @cache
    def episode(dataset: str, shots: int):
        return banks[dataset].episode(shots, seed=1)

    def judged(method, task) -> tuple:
        fitted = method.fit(task)
        found = {"train": fitted.accuracy(task.support), "validation": fitted.val_accuracy}
        return fitted, {split: value for split, value in found.items() if value is not None}

    def draw(dataset: str, branch: str, reduction: int, alpha: float, shots: int, test: bool):
        task, alpha = episode(dataset, shots), round(alpha, 2)
        if (dataset, shots) not in tried:
            tried[dataset, shots] = {plots.NAMES["zero-shot"]: judged(ZeroShot(), task)}
        rows, label = tried[dataset, shots], f"{branch}, D/{reduction}, α = {alpha:g}"
        method = CLIPAdapter(branch=branch, reduction=reduction, alpha=alpha, beta=alpha, **LIVE)
        rows[label] = rows.pop(label, None) or judged(method, task)  # the current one goes last
        if len(rows) > MOST_ROWS:
            del rows[list(rows)[1]]
        for fitted, found in rows.values() if test else ():
            if "test" not in found:
                found["test"] = fitted.accuracy(task.test)
        shown = {name: {split: v for split, v in found.items() if test or split != "test"}
                 for name, (_, found) in rows.items()}
        return plots.settings_tried(shown, f"{dataset}, {count(shots, 'shot')} per class, "
                                           f"{LIVE['steps']} steps",
                                    task.backbone_name)

    first, many = next(iter(banks.values())), (1, 2, 4, 8, 16)
    return Explorer(draw, dataset=_choice("Dataset", list(banks)),
                    branch=_choice("Branch", ["visual", "text", "both"]),
                    reduction=_widths(first.text_features.shape[1]), alpha=_ratio(0.2),
                    shots=_slider("Shots per class", many,
                                  max(s for s in many[:3] if s <= first.max_shots)),
                    test=_box("Show test accuracy (look last)", False))


def method_explorer(table) -> Explorer:
    """Accuracy over shots of the methods and the bank picked from a table of `compare` or
    `reference()`.
    """
    banks, methods = list(dict.fromkeys(table.dataset)), list(dict.fromkeys(table.method))
    every = "all banks"

    def draw(bank: str, **picked: bool):
        rows = table[table.method.isin([method for method, on in picked.items() if on])]
        if not len(rows):
            raise ValueError("No method is picked; pick at least one.")
        return plots.accuracy_over_shots(rows if bank == every else rows[rows.dataset == bank])

    main = [method for method in methods if "(" not in method][:4] or methods[:4]
    return Explorer(draw, bank=_choice("Bank", [*banks, *([every] if len(banks) > 1 else [])]),
                    **{method: _box(plots.NAMES.get(method, method), method in main)
                       for method in methods})


def manifold_explorer(panels, labels, classnames, backbone: str | None = None) -> Explorer:
    """Precomputed t-SNE panels {(stage, perplexity, seed): [N, 2]} by stage, perplexity and seed:
    `plots.manifold`.
    """
    stages, perplexities, seeds = (list(dict.fromkeys(key[i] for key in panels)) for i in range(3))
    every = "all stages"

    def draw(stage: str, perplexity, seed: int):
        wanted = {name: (name, perplexity, seed) for name in (stages if stage == every else [stage])}
        if absent := [key for key in wanted.values() if key not in panels]:
            raise ValueError(f"Stage '{absent[0][0]}' was not computed for perplexity {perplexity} "
                             f"and seed {seed}; choose others.")
        return plots.manifold({name: panels[key] for name, key in wanted.items()}, labels,
                              classnames, backbone, f"perplexity {perplexity}, seed {seed}")

    stages_or_all = [every, *stages] if len(stages) > 1 else stages
    return Explorer(draw, stage=_choice("Stage", stages_or_all),
                    perplexity=_choice("Perplexity", perplexities), seed=_choice("Seed", seeds))


def rejection_explorer(found) -> Explorer:
    """Move the threshold over the scores of an `OpenSet`, as `cal.open_set` gives it:
    `plots.rejection`.
    """
    low, high = (round(float(edge), 2) for edge in (found.unknown.min(), found.known.max()))
    slider = ipywidgets.FloatSlider(value=round(found.threshold, 2), min=min(low, found.threshold),
                                    max=high, step=round((high - low) / 100, 3) or 0.01,
                                    **_look("Threshold", "420px", continuous_update=False))
    return Explorer(lambda threshold: plots.rejection(found, threshold), threshold=slider)


def sets_explorer(classifier, held_out, test) -> Explorer:
    """Promise a coverage, on average or in each class, and see the sets of test images:
    `plots.set_sizes`.

    held_out: images that calibrate, as `FeatureBank.hold_out` gives them.
    """
    from .calibration import calibrate
    features = test.view()

    def draw(coverage: float, class_wise: bool):
        sure = calibrate(classifier, held_out, scaling="none", coverage=coverage,
                         class_wise=class_wise)
        return plots.set_sizes(sure.prediction_sets(features), test.labels, coverage,
                               classifier.origin.get("backbone"))

    promised = [(f"{share} %", share / 100) for share in (50, 60, 70, 80, 85, 90, 95, 99)]
    return Explorer(draw, coverage=_slider("Promised coverage", promised, 0.9),
                    class_wise=_box("In each class", False))
