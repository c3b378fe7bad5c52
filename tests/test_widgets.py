"""A control that changes draws what the function behind the widget draws; nothing is printed, refusals are one sentence."""
import gc
import re
from itertools import product
from pathlib import Path

import numpy
import pytest
import torch
from conftest import tiny_backbone
from ipywidgets import Checkbox, Dropdown, Select, SelectMultiple
from pandas import DataFrame
from test_plots import METHODS, study

from clip_adapter_lite import CLIPAdapter, FeatureBank, Split, ZeroShot, classifier_weights, plots, widgets
from clip_adapter_lite.curves import training_curve
from clip_adapter_lite.datasets import fashion_mnist
from clip_adapter_lite.methods.base import Classifier

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def silent(capsys):
    """No callback prints: output of a callback goes to JupyterLab's log or, worse, into the page."""
    yield
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def source(widget) -> str:
    """The picture's data, as the page has it; an explorer shows exactly one, with alt text and its own white ground."""
    (found,) = re.findall(r'<img alt="([^"]+)" src="(data:image/svg\+xml;base64,[^"]+)" width="\d+" '
                          r'style="background: white', page(widget))
    assert len(found[0]) > 40
    return found[1]


def page(widget) -> str:
    row, said, picture = widget.children
    assert list(row.children) == list(widget.controls.values())
    return said.value + picture.value


def check_controls(widget) -> None:
    """Every control has a text label with room for it, works from the keyboard, and sends its value once a move is over."""
    for control in widget.controls.values():
        assert control.description and control.style.description_width == "initial"
        assert not isinstance(control, Dropdown | Select | SelectMultiple)  # JupyterLab takes their arrow keys
        assert not getattr(control, "continuous_update", False)


def moves(widget, name: str, value) -> None:
    """Setting the control gives another picture and no message."""
    before = source(widget)
    widget.controls[name].value = value
    assert source(widget) != before and not widget.message


def test_the_alpha_slider_trains_at_its_value_and_keeps_what_was_tried(toy_bank):
    episode = toy_bank(noise=2.0).episode(4)
    widget = widgets.alpha_slider(episode)
    check_controls(widget)
    for alpha in (0.7, 0.0, 0.3):
        moves(widget, "alpha", alpha)
    fitted = CLIPAdapter(alpha=0.3, **widgets.LIVE).fit(episode)
    (axis,) = widget.figure.axes
    assert axis.get_title() == (f"α = 0.3: train {100 * fitted.accuracy(episode.support):.1f} %, "
                                f"validation {100 * fitted.val_accuracy:.1f} %")
    zero, _, train, val, _ = axis.lines
    assert list(train.get_xdata()) == [0.0, 0.2, 0.3, 0.7]
    assert zero.get_ydata()[0] == val.get_ydata()[0] == pytest.approx(100 * ZeroShot().fit(episode).val_accuracy)
    widget.controls["alpha"].value = 0.7
    assert widget.figure.axes[0].get_title().startswith("α = 0.7") and len(widget.figure.axes[0].lines[2].get_xdata()) == 4


def test_the_alpha_slider_needs_validation_images(toy_bank, expect_refused):
    from dataclasses import replace
    episode = replace(toy_bank().episode(2), val=Split(torch.empty(0, 16), torch.empty(0, dtype=torch.long)))
    with expect_refused("chosen on validation images"):
        widgets.alpha_slider(episode)


def test_the_curve_explorer_shows_this_setting_beside_the_one_before(toy_bank):
    episode = toy_bank(noise=2.0).episode(2)
    widget = widgets.training_curve_explorer(episode)
    check_controls(widget)
    assert not widget.controls["alpha"].disabled
    moves(widget, "residual", False)
    assert widget.controls["alpha"].disabled
    moves(widget, "reduction", 16)
    axis = widget.figure.axes[0]
    wanted = training_curve(CLIPAdapter(alpha=1.0, reduction=16, **widgets.LIVE), episode, every=4)
    assert list(axis.lines[1].get_ydata()) == pytest.approx([100 * v for v in wanted.test])
    assert settings(axis) == {"no residual, D/16", "before: no residual, D/4"}
    moves(widget, "residual", True)
    assert settings(widget.figure.axes[0]) == {"α = 0.2, D/16", "before: no residual, D/16"}
    assert [value for _, value in widget.controls["reduction"].options] == [1, 2, 4, 8, 16]  # D is 16


def settings(axis) -> set[str]:
    return {text.get_text().rsplit(":", 1)[0] for text in axis.texts}


def test_the_ablation_explorer_trains_the_setting_and_leaves_test_alone_until_asked(toy_bank, monkeypatch):
    asked, accuracy = [], Classifier.accuracy
    monkeypatch.setattr(Classifier, "accuracy", lambda self, split: asked.append(len(split)) or accuracy(self, split))
    banks = [toy_bank(noise=2.0, dataset="one"), toy_bank(noise=1.0, dataset="two", train=20)]
    widget = widgets.ablation_explorer(banks)
    check_controls(widget)
    assert widget.controls["shots"].value == 4  # quick, and the first bank has them
    moves(widget, "shots", 2)
    moves(widget, "branch", "both")
    moves(widget, "alpha", 0.6)
    moves(widget, "reduction", 8)
    episode = banks[0].episode(2, seed=1)
    fitted = CLIPAdapter(branch="both", alpha=0.6, beta=0.6, reduction=8, **widgets.LIVE).fit(episode)
    numbers = [f"train {100 * fitted.accuracy(episode.support):.0f}", f"validation {100 * fitted.val_accuracy:.0f}"]
    (axis,) = widget.figure.axes
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        "zero-shot CLIP", "visual, D/4, α = 0.2", "both, D/4, α = 0.2", "both, D/4, α = 0.6", "both, D/8, α = 0.6"]
    assert axis.texts[-1].get_text() == ", ".join(numbers) + " %"
    tests = len(episode.test)
    assert tests not in asked and len(episode.support) in asked
    moves(widget, "test", True)
    assert asked.count(tests) == 5  # one a row
    numbers += [f"test {100 * fitted.accuracy(episode.test):.0f}"]
    assert widget.figure.axes[0].texts[-1].get_text() == ", ".join(numbers) + " %"
    moves(widget, "dataset", "two")
    assert len(widget.figure.axes[0].get_yticklabels()) == 2 and widget.figure.axes[0].get_title("left").startswith("two, 2")


def test_shots_that_a_bank_has_not_are_one_sentence_and_the_figure_stays(toy_bank):
    widget = widgets.ablation_explorer([toy_bank()])
    before = source(widget)
    widget.controls["shots"].value = 16
    assert "has 8 training images, fewer than the 16 shots" in widget.message
    assert source(widget) == before and 'role="alert"' in page(widget) and "Traceback" not in page(widget)
    moves(widget, "shots", 1)
    assert "alert" not in page(widget)


def test_the_ablation_explorer_forgets_the_oldest_setting_but_never_zero_shot(toy_bank):
    widget = widgets.ablation_explorer([toy_bank()])
    for alpha in (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        widget.controls["alpha"].value = alpha
    rows = [t.get_text() for t in widget.figure.axes[0].get_yticklabels()]
    assert len(rows) == widgets.MOST_ROWS
    assert rows[0] == "zero-shot CLIP" and rows[1].endswith("0.1") and rows[-1].endswith("0.8")


@pytest.fixture
def spoken() -> tuple:
    """A bank of words under a backbone with a text tower, and the backbone."""
    backbone, names = tiny_backbone(), ("cat", "dog", "owl")
    weights = classifier_weights(backbone, names)
    test = Split(weights[[0, 1, 2, 0]] + 0.1, torch.tensor([0, 1, 2, 1]))
    bank = FeatureBank(dataset="words", backbone="pocket", classnames=names, text_features=weights, logit_scale=20.0,
                       splits={"train": test, "val": test, "test": test})
    return bank, backbone


def test_the_playground_encodes_what_is_typed_and_needs_no_backbone_before(spoken):
    bank, backbone = spoken
    untouched = widgets.prompt_playground(bank, backbone=None)
    assert untouched.figure.axes[1].patches[0].get_height() == untouched.figure.axes[1].patches[1].get_height()
    widget = widgets.prompt_playground(bank, backbone)
    check_controls(widget)
    moves(widget, "classnames", "fish, tree, house")
    moves(widget, "template", "a drawing of a {}. ; the {}")
    moves(widget, "image", 3)
    names = ("fish", "tree", "house")
    wanted = plots.prompt_result(bank, classifier_weights(backbone, names, ("a drawing of a {}.", "the {}")), names, 3)
    for mine, theirs in zip(widget.figure.axes, wanted.axes):
        assert [b.get_width() for b in mine.patches] == [b.get_width() for b in theirs.patches]
        assert [b.get_height() for b in mine.patches] == [b.get_height() for b in theirs.patches]
    assert "test picture 3: dog" in page(widget)
    moves(widget, "classnames", "fish, tree, house, stone")  # a distractor


@pytest.mark.parametrize("control, typed, says", [
    ("classnames", "", "There are 0 class names but words has 3 classes"), ("classnames", " , cat, ,dog", "There are 2"),
    ("template", "a photo", "The template 'a photo' has no {}"), ("template", "", "templates must be texts"),
    ("classnames", "<b>cat</b>", "There are 1 class names")])
def test_words_that_cannot_be_are_one_sentence(spoken, control, typed, says):
    widget = widgets.prompt_playground(*spoken)
    before = source(widget)
    widget.controls[control].value = typed
    assert says in widget.message and widget.message.endswith(".") and ". " not in widget.message
    assert source(widget) == before
    widget.controls["template"].value, widget.controls["classnames"].value = "{}.", "cat, dog, owl"
    assert not widget.message and source(widget) != before


def test_the_playground_shows_the_picture_it_is_given(spoken):
    pictures = [picture for picture, _ in fashion_mnist().splits["test"][:4]]
    widget = widgets.prompt_playground(*spoken, pictures=pictures)
    widget.controls["image"].value = 2
    shown = widget.figure.axes[0].images[0].get_array()
    assert (numpy.asarray(shown) == numpy.asarray(pictures[2])).all()


def test_what_is_typed_cannot_become_part_of_the_page(spoken):
    widget = widgets.prompt_playground(*spoken)
    widget.controls["classnames"].value = '"><script>x</script>, dog, owl'
    assert "<script" not in page(widget) and not widget.message
    widget.controls["template"].value = "<script>"
    assert "<script" not in page(widget) and "&lt;script&gt;" in page(widget)


def test_the_episode_viewer_shows_the_episode():
    widget = widgets.episode_viewer()
    check_controls(widget)
    moves(widget, "shots", 2)
    moves(widget, "seed", 3)
    wanted = plots.episode_grid(fashion_mnist(), 2, 3)
    shown, expected = (figure.axes[0].images[0].get_array() for figure in (widget.figure, wanted))
    assert (shown == expected).all()
    assert (widget.controls["shots"].min, widget.controls["shots"].max) == (1, 16)


def test_the_method_explorer_draws_the_rows_that_are_picked():
    table = study()
    widget = widgets.method_explorer(table)
    check_controls(widget)
    assert [axis.get_title() for axis in widget.figure.axes] == ["one"]
    picked = {name: box.value for name, box in widget.controls.items() if name != "bank"}
    assert picked == {m: m != "mine(alpha=0.5)" for m in METHODS}
    moves(widget, "bank", "two")
    moves(widget, "linear-probe", False)
    moves(widget, "mine(alpha=0.5)", True)
    wanted = table[(table.dataset == "two") & (table.method != "linear-probe")]
    assert plots.describe(widget.figure) == plots.describe(plots.accuracy_over_shots(wanted))
    moves(widget, "bank", "all banks")
    assert len(widget.figure.axes) == 4
    before = source(widget)
    for method in METHODS:
        widget.controls[method].value = False
    assert widget.message == "No method is picked; pick at least one."
    assert source(widget) != before  # fewer lines until the last was gone


def test_the_manifold_explorer_picks_among_what_was_computed():
    generator, labels = numpy.random.default_rng(0), [0, 1] * 5
    keys = product(("CLIP", "adapted"), (5, 30), (0, 1))
    panels = {key: generator.normal(size=(10, 2)) for key in keys}
    del panels["adapted", 30, 1]
    widget = widgets.manifold_explorer(panels, labels, ["cat", "dog"], "pocket")
    check_controls(widget)
    assert [axis.get_title() for axis in widget.figure.axes] == ["CLIP", "adapted"]
    moves(widget, "stage", "adapted")
    moves(widget, "perplexity", 30)
    points = numpy.concatenate([c.get_offsets() for c in widget.figure.axes[0].collections])
    assert points.tolist() == numpy.concatenate([panels["adapted", 30, 0][0::2], panels["adapted", 30, 0][1::2]]).tolist()
    assert "perplexity 30, seed 0" in page(widget)
    widget.controls["seed"].value = 1
    assert widget.message == "Stage 'adapted' was not computed for perplexity 30 and seed 1; choose others."


def test_a_fault_of_ours_is_not_hidden_as_a_message():
    def draw(value):
        return DataFrame().nothing
    with pytest.raises(AttributeError, match="nothing"):
        widgets.Explorer(draw, value=Checkbox())


@pytest.mark.parametrize("before", [True, False])
def test_no_garbage_is_collected_while_a_figure_is_drawn_and_it_is_as_before_after(before):
    seen = []

    def draw(value):
        seen.append(gc.isenabled())
        if value:
            raise ZeroDivisionError
        return plots.alpha_history({0.3: (0.85, 0.75)}, 0.55)
    was = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        box = Checkbox()
        widgets.Explorer(draw, value=box)
        assert gc.isenabled() is before
        with pytest.raises(ZeroDivisionError):
            box.value = True
        assert gc.isenabled() is before and seen == [False, False]
    finally:
        (gc.enable if was else gc.disable)()


def test_notebooks_and_readme_say_what_a_live_training_takes():
    steps, rate = widgets.LIVE["steps"], widgets.LIVE["rate"]
    assert rate == 4 * CLIPAdapter.rate
    for name in ("03_the_adapter", "05_rq2_residual", "06_rq3_configuration"):
        words = " ".join((ROOT / "notebooks" / "src" / f"{name}.py").read_text(encoding="utf-8").replace("# ", "").split())
        assert f"{steps} steps at four times the library's rate" in words
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"Widgets that train live take {steps} steps at {1000 * rate:g}e-3." in readme


def test_the_threshold_and_the_coverage_of_a_classifier_at_work_follow_their_sliders(toy_bank):
    from clip_adapter_lite import calibrate, open_set
    found = open_set(toy_bank(classes=8, val=30, test=20, noise=3.0), ZeroShot(), 4, false_reject=0.1)
    widget = widgets.rejection_explorer(found)
    widget.controls["threshold"].value = high = float(found.known.max())
    share = 100 * (found.unknown < widget.controls["threshold"].value).double().mean().item()
    assert widget.controls["threshold"].value == pytest.approx(high, abs=0.1) and f": {share:.1f} % rejected" in page(widget)

    bank, held_out = toy_bank(val=60, test=40, noise=4.0).hold_out()
    fitted, test = ZeroShot().fit(bank.episode(2)), bank.episode(2).test
    widget = widgets.sets_explorer(fitted, held_out, test)
    widget.controls["coverage"].value = 0.8
    widget.controls["class_wise"].value = True
    sets = calibrate(fitted, held_out, coverage=0.8, class_wise=True).prediction_sets(test.view())
    held = 100 * sets.gather(1, test.labels[:, None]).double().mean().item()
    assert f"promised 80 %, found {held:.1f} %; mean size {sets.sum(1).double().mean():.2f}" in page(widget)
