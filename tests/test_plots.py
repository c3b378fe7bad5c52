"""The figures show the numbers of the table, and a file is whole or not there."""
import warnings
from itertools import combinations
from statistics import mean, stdev

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL import Image

from clip_adapter_lite import plots

METHODS = ("zero-shot", "linear-probe", "clip-adapter", "mine", "mine(alpha=0.5)")
DATASETS = ("one", "two", "three", "four")


def accuracy(d: int, m: int, s: int, seed: int) -> float:
    """A made-up accuracy, different for every run but zero-shot's, which sees neither shots nor seed."""
    return 0.3 + 0.05 * d if m == 0 else 0.2 + 0.1 * m + 0.03 * d + 0.002 * s + 0.01 * seed * seed * (1 + 0.1 * s)


def study(datasets=DATASETS, methods=METHODS, shots=(4, 1, 16), seeds=(1, 2, 3), backbone="pocket") -> DataFrame:
    return DataFrame([dict(dataset=dataset, backbone=backbone, method=method, shots=s, seed=seed,
                           accuracy=accuracy(d, METHODS.index(method), s, seed))
                      for d, dataset in enumerate(datasets) for method in methods for s in shots for seed in seeds])


def bars(axis) -> dict:
    """label → (line, lower ends, upper ends) of a panel's error bars."""
    found = {}
    for container in axis.containers:
        line, _, (collection,) = container.lines
        segments = collection.get_segments()
        found[container.get_label()] = (line, [s[0][1] for s in segments], [s[1][1] for s in segments])
    return found


def test_the_lines_are_means_and_the_bars_one_standard_deviation():
    figure = plots.accuracy_over_shots(study())
    assert [axis.get_title() for axis in figure.axes] == list(DATASETS)
    for d, axis in enumerate(figure.axes):
        lines = bars(axis)
        assert list(lines) == [plots.NAMES.get(m, m) for m in METHODS[1:]]
        for m, (line, low, high) in enumerate(lines.values(), start=1):
            values = [[100 * accuracy(d, m, s, seed) for seed in (1, 2, 3)] for s in (1, 4, 16)]
            assert list(line.get_xdata()) == [1, 4, 16]
            assert list(line.get_ydata()) == pytest.approx([mean(v) for v in values])
            assert low == pytest.approx([mean(v) - stdev(v) for v in values])
            assert high == pytest.approx([mean(v) + stdev(v) for v in values])
        (flat,) = [line for line in axis.lines if line.get_label() == "zero-shot CLIP"]
        assert list(flat.get_ydata()) == pytest.approx([30 + 5 * d] * 2) and flat.get_linestyle() == "--"


def test_axes_labels_and_caption():
    figure = plots.accuracy_over_shots(study())
    first = figure.axes[0]
    assert len(figure.axes) == 4  # the empty places of the grid are gone
    assert all(first.get_shared_y_axes().joined(first, axis) for axis in figure.axes)
    assert {axis.get_ylim() for axis in figure.axes} == {first.get_ylim()}
    assert {axis.get_xlabel() for axis in figure.axes} == {"shots per class"}
    assert [axis.get_ylabel() for axis in figure.axes] == ["test accuracy (%)", "", "", "test accuracy (%)"]
    for axis in figure.axes:
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "4", "16"]
    caption = figure.get_supxlabel()
    assert "pocket CLIP (ImageNet-supervised image tower)" in caption and "mean of 3 seeds" in caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "zero-shot CLIP", "linear probe", "CLIP-Adapter", "mine", "mine(alpha=0.5)"]


def test_another_backbone_is_named_and_one_seed_has_no_bars():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.accuracy_over_shots(study(DATASETS[:1], seeds=[1], shots=[1], backbone="ViT-B-32-quickgelu"))
    caption = " ".join(figure.get_supxlabel().split())
    assert "features: ViT-B-32-quickgelu; mean of 1 seed; " in caption and "bars" not in caption
    for line, low, high in bars(figure.axes[0]).values():
        assert low == high == list(line.get_ydata())


def test_a_method_keeps_its_colour_and_all_differ():
    unknown = [f"mine {i}" for i in range(6)]
    colours = plots.colours_of([*METHODS[:3], *unknown])
    assert len({to_hex(c) for c in colours.values()}) == len(plots.COLOURS) + 6
    assert {m: colours[m] for m in plots.COLOURS} == plots.COLOURS
    for methods in (METHODS, METHODS[2:], METHODS[::-1]):
        figure = plots.accuracy_over_shots(study(DATASETS[:1], methods))
        assert bars(figure.axes[0])["CLIP-Adapter"][0].get_color() == plots.COLOURS["clip-adapter"]
        drawn = [line.get_color() for line, *_ in bars(figure.axes[0]).values()]
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("eye", [  # Machado, Oliveira and Fernandes 2009, severity 1: without the red or the green cone
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]])
def test_four_settings_differ_in_colour_for_colour_blind_eyes(eye):
    settings = ["a", "b", "c", "d"]
    linear = (np.array([to_rgb(plots.colours_of(settings)[name]) for name in settings]) + 0.055) / 1.055
    seen = np.clip(linear ** 2.4 @ np.array(eye).T, 0, 1) ** (1 / 2.4)
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.25  # of 1.73, black to white


def test_many_names_have_as_many_colours():
    names = [f"mine {i}" for i in range(12)]
    assert len({plots.colours_of(names)[name] for name in names}) == 12


def test_a_method_missing_from_the_first_panel_is_in_the_legend():
    table = study(DATASETS[:2])
    table = table[~((table.dataset == "one") & (table.method == "mine"))]
    figure = plots.accuracy_over_shots(table)
    assert "mine" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure.draw_without_rendering()


def test_the_house_style_does_not_leak():
    import matplotlib
    before = dict(matplotlib.rcParams)
    plots.accuracy_over_shots(study(DATASETS[:1]))
    assert dict(matplotlib.rcParams) == before


def test_features_of():
    assert plots.features_of("RN50-quickgelu") == "RN50-quickgelu"
    assert "ImageNet-supervised" in plots.features_of("pocket")


def test_save_writes_a_whole_picture_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "figure.png"
    assert plots.save(plots.accuracy_over_shots(study(DATASETS[:1])), path) == path
    with Image.open(path) as picture:
        picture.load()
        assert min(picture.size) > 300 and len(picture.convert("L").getcolors()) > 10  # not blank
    assert list(path.parent.iterdir()) == [path]
    plots.save(Figure(), str(path.with_suffix(".svg")))
    assert path.with_suffix(".svg").read_text().startswith("<?xml")


def test_a_failing_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def fail(self, where, **options):
        where.write_bytes(b"half")
        raise OSError("disk full")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
