"""Figures of fits, of the feature space and of pictures show what they are given."""
import base64
import io
from statistics import mean, stdev
from xml.etree import ElementTree

import numpy
import pytest
import torch
from pandas import DataFrame
from PIL import Image

from clip_adapter_lite import FeatureBank, Split, plots
from clip_adapter_lite.datasets import ImageDataset, fashion_mnist


def curve(train, test, **attrs) -> DataFrame:
    table = DataFrame({"step": range(0, 4 * len(train), 4), "loss": 1.0, "train": train, "val": 0.5, "test": test})
    table.attrs = attrs
    return table


def test_a_ratio_over_its_steps_is_drawn_as_it_was_and_named_by_where_it_ends():
    ratios = {"held out": [0.4, 0.35, 0.3], "support": [0.4, 0.6, 0.9]}
    (axis,) = plots.ratio_over_steps(ratios, "pocket").axes
    assert {tuple(line.get_ydata()) for line in axis.lines} >= {tuple(values) for values in ratios.values()}
    assert [list(line.get_xdata()) for line in axis.lines[:2]] == [[1, 2, 3], [1, 2, 3]]
    told = " ".join(text.get_text() for text in axis.texts)
    assert "held out: 0.30" in told and "support: 0.90" in told


def test_training_curves_are_dashed_for_train_and_solid_for_test_and_name_the_gap():
    curves = {"α = 1": curve([0.2, 0.9, 1.0], [0.1, 0.5, 0.6], backbone="pocket", dataset="toy", shots=1, seed=3),
              "α = 0.2": curve([0.2, 0.7, 0.8], [0.1, 0.7, 0.75], backbone="pocket", dataset="toy", shots=1, seed=3)}
    figure = plots.training_curves(curves)
    (axis,) = figure.axes
    for i, table in enumerate(curves.values()):
        train, test = axis.lines[2 * i:2 * i + 2]
        assert (train.get_linestyle(), test.get_linestyle()) == ("--", "-") and train.get_color() == test.get_color()
        assert train.get_xydata().tolist() == [pytest.approx((s, 100 * v)) for s, v in zip(table.step, table.train)]
        assert list(test.get_ydata()) == pytest.approx([100 * v for v in table.test])
    assert [text.get_text() for text in axis.texts] == ["α = 1: test 60 %, gap 40", "α = 0.2: test 75 %, gap 5"]
    assert figure.get_supxlabel().count("toy, 1 shot per class, seed 3") == 1 and "pocket CLIP" in figure.get_supxlabel()


def test_the_alpha_history_is_sorted_and_marks_the_last():
    tried = {0.5: (0.9, 0.7), 0.1: (0.8, 0.6), 0.3: (0.85, 0.75)}
    (axis,) = plots.alpha_history(tried, 0.55, "pocket").axes
    zero, band, train, val, now = axis.lines
    assert list(zero.get_ydata()) == pytest.approx([55, 55]) and list(band.get_xdata()) == [0.3, 0.3]
    assert list(train.get_xdata()) == [0.1, 0.3, 0.5] and list(train.get_ydata()) == pytest.approx([80, 85, 90])
    assert list(val.get_ydata()) == pytest.approx([60, 75, 70])
    assert now.get_xydata().tolist() == [pytest.approx((0.3, 85)), pytest.approx((0.3, 75))]
    assert axis.get_title() == "α = 0.3: train 85.0 %, validation 75.0 %" and axis.get_ylim()[0] < 55


def test_settings_tried_are_rows_with_their_numbers_and_test_only_where_given():
    rows = {"zero-shot CLIP": {"train": 0.5, "validation": 0.4}, "visual": {"train": 0.9, "validation": 0.6, "test": 0.7}}
    (axis,) = plots.settings_tried(rows, "fashion-mnist, 16 shots per class, 15 steps").axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_linestyle() == "None"]
    assert points == [pytest.approx(p) for p in ((50, 0), (40, 0), (90, 1), (60, 1), (70, 1))]
    assert [text.get_text() for text in axis.texts] == ["train 50, validation 40 %", "train 90, validation 60, test 70 %"]
    (legend,) = axis.figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["train", "validation", "test"]
    axis.figure.draw_without_rendering()
    assert not legend.get_window_extent().overlaps(axis._left_title.get_window_extent())
    assert [t.get_fontweight() for t in axis.get_yticklabels()] == ["normal", "bold"]
    (axis,) = plots.settings_tried({"a": {"train": 0.5, "validation": 0.4}}).axes
    assert [t.get_text() for t in axis.figure.legends[0].get_texts()] == ["train", "validation"]


def test_ratio_histograms_hold_the_shares_and_the_median():
    values = {"images": [0.15, 0.15, 0.65, 0.95], "classes": torch.tensor([1.0])}
    figure = plots.ratio_distributions(values, "pocket", bins=10)
    first, second = figure.axes
    heights = [patch.get_height() for patch in first.patches]
    assert sum(heights) == pytest.approx(1) and heights[9] == 0.25 and heights[1] == 0.5 and heights[6] == 0.25
    assert list(first.lines[0].get_xdata()) == pytest.approx([0.4] * 2)
    assert first.texts[0].get_text() == "median 0.40\nN = 4" and second.patches[-1].get_height() == 1
    assert [axis.get_ylabel() for axis in figure.axes] == ["images", "classes"]


def test_manifold_panels_share_colours_and_name_each_class_at_its_median():
    labels = [0, 0, 0, 2, 2, 2]
    points = numpy.array([[0, 0], [1, 0], [9, 0], [0, 9], [5, 8], [5, 9]], float)
    names = ["cat", "dog", "owl"]
    figure = plots.manifold({"zero-shot": points, "adapted": -points}, labels, names, "pocket", "perplexity 2")
    for axis, sign in zip(figure.axes, (1, -1)):
        cats, owls = axis.collections
        assert cats.get_offsets().tolist() == (sign * points[:3]).tolist()
        assert owls.get_offsets().tolist() == (sign * points[3:]).tolist()
        assert {text.get_text(): list(text.xy) for text in axis.texts} == {
            "cat": [sign * 1, 0], "owl": [sign * 5, sign * 9]}
        assert not len(axis.get_xticks()) and "no unit" in axis.get_xlabel()
    first, second = ([c.get_facecolor().tolist() for c in axis.collections] for axis in figure.axes)
    assert first == second
    assert "6 images; perplexity 2" in figure.get_supxlabel()


def test_a_panel_of_other_images_is_refused_and_many_classes_go_unnamed(expect_refused):
    with expect_refused("'bad' has points of shape [3, 2] but there are 4 labels", ValueError):
        plots.manifold({"bad": numpy.zeros((3, 2))}, [0, 1, 0, 1], ["a", "b"])
    many = numpy.arange(50)
    figure = plots.manifold({"t": numpy.random.default_rng(0).normal(size=(50, 2))}, many, [str(i) for i in many])
    assert not figure.axes[0].texts
    assert len({tuple(c.get_facecolor()[0]) for c in figure.axes[0].collections}) == 50


def test_measures_are_dots_and_their_mean(expect_refused):
    table = DataFrame([dict(stage=stage, seed=seed, silhouette=0.1 * seed + i, purity=0.2 * seed)
                       for i, stage in enumerate(("before", "after")) for seed in (1, 2, 4)])
    figure = plots.measures(table, "pocket")
    assert [axis.get_xlabel() for axis in figure.axes] == ["silhouette (cosine)", "k-NN purity"]
    for row, container in enumerate(figure.axes[0].containers):
        line, _, (bar,) = container.lines
        values = [0.1 * seed + row for seed in (1, 2, 4)]
        assert line.get_xydata().tolist() == [pytest.approx((mean(values), row))]
        ends = [mean(values) - stdev(values), mean(values) + stdev(values)]
        assert [x for x, _ in bar.get_segments()[0]] == pytest.approx(ends)
        assert sorted(figure.axes[0].collections[2 * row].get_offsets()[:, 0]) == pytest.approx(values)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["before", "after"]
    with expect_refused("needs a column 'stage'", ValueError):
        plots.measures(table.drop(columns="stage"))


# ── prompts and pictures ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def compass() -> FeatureBank:
    """Four classes in four directions; of eight test pictures the last is on the side of another class."""
    axes = torch.eye(4)
    features = torch.cat([axes, axes * 3])
    features[7] = torch.tensor([2.0, 0, 0, 1])
    test = Split(features, torch.arange(8) % 4)
    return FeatureBank(dataset="compass", backbone="pocket", classnames=("north", "east", "south", "west"),
                       text_features=axes, logit_scale=2.0, splits={"train": test, "val": test, "test": test})


def test_a_prompts_probabilities_and_accuracies(compass):
    weights = torch.eye(4)[[1, 0, 2, 3]]  # north and east swapped
    names = ["up", "right", "down", "left"]
    figure = plots.prompt_result(compass, weights, names, image=7, top=3)
    left, right = figure.axes
    length = 5 ** 0.5
    scores = numpy.exp([0, 2 * 2 / length, 0, 2 * 1 / length])
    chances = sorted(100 * scores / scores.sum(), reverse=True)[:3]
    assert [bar.get_width() for bar in left.patches] == pytest.approx(chances, rel=1e-3)
    assert [t.get_text() for t in left.get_yticklabels()][:2] == ["right", "left"]
    assert [t.get_text() for t in left.texts][:2] == [f"{chances[0]:.1f}", f"{chances[1]:.1f} (true class)"]
    assert left.get_title() == "test picture 7: west"
    assert [bar.get_height() for bar in right.patches] == [100 * 3 / 8, 100 * 7 / 8]


def test_a_distractor_takes_pictures_away_and_fewer_names_than_classes_are_refused(compass, expect_refused):
    weights = torch.cat([torch.eye(4), torch.tensor([[0, 0, 1.0, 0.01]]) * 5])
    weights[2] = torch.tensor([0, 0, 1.0, 0.5])
    figure = plots.prompt_result(compass, weights, [*compass.classnames, "distractor"])
    assert figure.axes[1].patches[0].get_height() == 100 * 5 / 8
    for bad in ((torch.eye(4)[:3], ["a", "b", "c"]), (torch.eye(4), ["a"] * 5)):
        with expect_refused("has 4 classes, so it needs as many names", ValueError):
            plots.prompt_result(compass, *bad)
    with expect_refused("image must be from 0 to 7", ValueError):
        plots.prompt_result(compass, torch.eye(4), compass.classnames, image=8)


def test_the_picture_is_drawn_when_it_is_given(compass):
    picture = fashion_mnist().splits["test"][0][0]
    figure = plots.prompt_result(compass, torch.eye(4), compass.classnames, picture=picture)
    assert len(figure.axes) == 3
    assert (numpy.asarray(figure.axes[0].images[0].get_array()) == numpy.asarray(picture)).all()


def test_an_episodes_pictures_are_the_support_of_a_bank_of_them():
    """Each picture is one grey; the bank's feature is that grey, so the episode of the bank says which belong there."""
    labels = [i % 3 for i in range(12)]
    items = [(Image.new("RGB", (9, 5), (10 * i, 0, 0)), label) for i, label in enumerate(labels)]
    dataset = ImageDataset(name="greys", classnames=("a", "b", "c"), splits={"train": items, "val": [], "test": []},
                           templates=("{}",), protocol="", source="")
    split = Split(torch.tensor([[10.0 * i + 1, 1, 1] for i in range(12)]), torch.tensor(labels))
    bank = FeatureBank(dataset="greys", backbone="none", classnames=("a", "b", "c"), text_features=torch.eye(3),
                       logit_scale=1.0, splits={"train": split, "val": split, "test": split})
    for shots, seed in ((2, 1), (3, 5)):
        (axis,) = plots.episode_grid(dataset, shots, seed).axes
        mosaic = numpy.asarray(axis.images[0].get_array())
        tiles = [int(mosaic[r * 68 + 30, c * 68 + 30, 0]) for r in range(3) for c in range(shots)]
        assert tiles == [round(f - 1) for f in bank.episode(shots, seed).support.features[:, 0].tolist()]
        assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b", "c"]
        assert axis.get_title() == f"greys: {shots} shots per class, seed {seed}"


@pytest.mark.parametrize("shots", [0, 49])
def test_shots_that_the_pictures_cannot_give_are_refused(expect_refused, shots):
    with expect_refused(f"from 1 to 48, the training pictures of fashion-mnist's class 't-shirt'; got {shots}"):
        plots.episode_grid(fashion_mnist(), shots)


def test_a_figure_in_words():
    words = plots.describe(plots.alpha_history({0.3: (0.85, 0.75)}, 0.55, "pocket"))
    assert words.startswith("α = 0.3: train 85.0 %, validation 75.0 %; accuracy (%) over residual ratio α")
    assert "features: pocket CLIP" in words and "\n" not in words and ";;" not in words
    rows = {"zero-shot CLIP": {"train": 0.5}, "visual, D/4": {"train": 0.9}}
    words = plots.describe(plots.settings_tried(rows, "toy"))
    assert "zero-shot CLIP; visual, D/4; train 50 %; train 90 %" in words


def test_a_figure_shows_itself_with_alt_text_on_a_light_ground():
    """What Jupyter asks for when a figure is a cell's last expression; pyplot and its backends have no part in it."""
    figure = plots.alpha_history({0.3: (0.85, 0.75)}, 0.55, "pocket")
    data, metadata = figure._repr_mimebundle_(include=None, exclude=None)
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        assert picture.size == (825, 429)  # 110 pixels an inch
        assert picture.getpixel((0, 0)) == (255, 255, 255, 255)
    words = plots.describe(figure)
    assert data["text/plain"] == words and metadata == {"image/png": {"alt": words}, "needs_background": "light"}


def test_equal_figures_are_equal_svg_on_white_and_others_are_not():
    first, again, other = (plots.alpha_history({0.3: (0.85, val)}, 0.55, "pocket").svg() for val in (0.75, 0.75, 0.74))
    assert first == again != other
    ground = next(path for path in ElementTree.fromstring(first).iter("{http://www.w3.org/2000/svg}path"))
    assert "fill: #ffffff" in ground.get("style")
