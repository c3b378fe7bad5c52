"""Figures of studies show the numbers of their table; each is compared with plain arithmetic on its rows."""
from statistics import mean, stdev

import pytest
from pandas import DataFrame
from test_plots import DATASETS, accuracy, bars, study

from clip_adapter_lite import plots
from clip_adapter_lite.evaluation import Comparison
from clip_adapter_lite.plots.style import ink

SEEDS = (1, 2, 3)


def sweep(banks=("one", "two"), branches=("visual", "text"), alphas=(0.0, 0.5, 1.0), reductions=(4,)) -> DataFrame:
    rows = []
    for d, dataset in enumerate(banks):
        for m, branch in enumerate(branches):
            for r in reductions:
                for alpha in alphas:
                    for seed in SEEDS:
                        rows.append(dict(dataset=dataset, backbone="pocket", method=f"({branch}, {alpha}, {r})", shots=4,
                                         seed=seed, accuracy=accuracy(d, m + 1, r, seed) + 0.1 * alpha, branch=branch,
                                         val_accuracy=0.5 + 0.01 * seed - abs(alpha - 0.5 * ((d + seed) % 3)), alpha=alpha,
                                         reduction=r))
    return DataFrame(rows)


def drawn_points(axis) -> list:
    """(x, y, lower end, upper end) of every point with an error bar."""
    found = []
    for container in axis.containers:
        line, _, (collection,) = container.lines
        for x, y, ends in zip(line.get_xdata(), line.get_ydata(), collection.get_segments()):
            found.append((x, y, ends[0][1], ends[1][1]))
    return found


def test_a_single_panel_labels_its_lines_at_their_ends_without_meeting():
    figure = plots.accuracy_over_shots(study(("one",)))
    (axis,) = figure.axes
    figure.draw_without_rendering()
    labels = {text.get_text(): text for text in axis.texts}
    assert set(labels) == set(bars(axis)) | {"zero-shot CLIP"} and not figure.legends
    for name, (line, *_) in bars(axis).items():
        assert labels[name].get_color() == ink(line.get_color())
    order = sorted(labels, key=lambda name: labels[name].get_position()[1])
    boxes = [labels[name].get_window_extent() for name in order]
    assert all(below.y1 <= above.y0 + 1 for below, above in zip(boxes, boxes[1:]))
    assert order[-1] == max(bars(axis), key=lambda name: bars(axis)[name][0].get_ydata()[-1])


def test_the_caption_tells_unequal_numbers_of_seeds_and_precomputed_results():
    table = study(("one",), seeds=range(1, 11))
    table = table[(table.method != "mine") | (table.seed <= 3)]
    assert "mean of 3 to 10 seeds" in plots.accuracy_over_shots(table).get_supxlabel()
    assert "precomputed" not in plots.accuracy_over_shots(table).get_supxlabel()
    table.attrs = {"commits": ["abc"]}
    assert "precomputed; mean of 3 to 10 seeds" in plots.accuracy_over_shots(table[table.shots > 1]).get_supxlabel()


@pytest.mark.parametrize("make", [
    lambda: plots.accuracy_over_shots(study()), lambda: plots.heat_map(sweep(), y="branch"),
    lambda: plots.accuracy_bars(study(), "shots"), lambda: plots.accuracy_bars(study(), columns=9)])
def test_no_figure_is_wider_than_a_laptop_shows(make):
    assert make().get_figwidth() <= 10


def test_bars_are_means_with_one_deviation_and_keep_the_methods_colours():
    table = study(("one", "two"), shots=(4,))
    figure = plots.accuracy_bars(table)
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    for d, axis in enumerate(figure.axes):
        assert [tick.get_text() for tick in axis.get_xticklabels()][:3] == ["zero-shot CLIP", "linear probe", "CLIP-Adapter"]
        for m, (patch, (_, _, low, high)) in enumerate(zip(axis.patches, drawn_points_of_bars(axis))):
            values = [100 * accuracy(d, m, 4, seed) for seed in SEEDS]
            assert patch.get_height() == pytest.approx(mean(values)) and patch.get_y() == 0
            assert (low, high) == pytest.approx((mean(values) - stdev(values), mean(values) + stdev(values)))
        from matplotlib.colors import to_hex
        assert to_hex(axis.patches[2].get_facecolor()) == plots.COLOURS["clip-adapter"]
        assert [text.get_text() for text in axis.texts][0] == f"{30 + 5 * d}"


def drawn_points_of_bars(axis) -> list:
    found = []
    for container in axis.containers:
        if getattr(container, "errorbar", None):
            found += [(None, None, *(y for _, y in ends)) for ends in container.errorbar.lines[2][0].get_segments()]
    return found


def test_a_group_per_value_of_by_and_a_bar_per_method_or_hue():
    table = study(("one",), shots=(1, 4))
    (axis,) = plots.accuracy_bars(table, "shots").axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "4"] and axis.get_xlabel() == "shots"
    assert len(axis.patches) == 2 * 5
    assert axis.patches[3].get_height() == pytest.approx(100 * mean(accuracy(0, 1, 4, seed) for seed in SEEDS))
    figure = plots.accuracy_bars(sweep(alphas=(0.5,), reductions=(1, 4)), "reduction", hue="branch")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["branch visual", "branch text"]
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    wanted = [100 * (mean(accuracy(1, m, r, seed) for seed in SEEDS) + 0.05) for m in (1, 2) for r in (1, 4)]
    assert heights == pytest.approx(wanted)


def test_what_else_varies_gets_panels_and_is_never_averaged_over():
    table = sweep(("one",), reductions=(1, 4))
    for figure in (plots.accuracy_bars(table, "reduction", hue="branch"), plots.heat_map(table, "reduction", "branch")):
        assert [axis.get_title() for axis in figure.axes] == ["0.0 alpha", "0.5 alpha", "1.0 alpha"]
    with pytest.raises(ValueError, match="no column 'width' to draw"):
        plots.accuracy_bars(table, "width")


def test_bars_by_dataset_are_not_titled_with_the_first_of_them():
    (axis,) = plots.accuracy_bars(study(("one", "two"), shots=(4,)), "dataset").axes
    assert axis.get_title() == "" and [tick.get_text() for tick in axis.get_xticklabels()] == ["one", "two"]


def test_a_heat_map_of_validation_accuracy_shows_its_means():
    table = sweep(("one",), branches=("visual",))
    (axis,) = plots.heat_map(table, y="branch", metric="val_accuracy").axes
    wanted = [100 * rows.val_accuracy.mean() for _, rows in table.groupby("alpha")]
    assert [text.get_text() for text in axis.texts] == [f"{value:.0f}" for value in wanted]
    assert "validation accuracy" in axis.figure.get_suptitle()


def test_the_gain_is_a_mean_of_paired_differences_against_the_reference():
    table = study(shots=(1, 4))
    table = table[~((table.dataset == "two") & (table.method == "linear-probe") & (table.seed == 3))]  # no partner
    (axis,) = plots.gain_scatter(table, "clip-adapter", "linear-probe", shots=4).axes
    names = [text.get_text() for text in axis.texts]
    assert sorted(names) == sorted(DATASETS)
    for name, text, (x, y, low, high) in zip(names, axis.texts, drawn_points(axis)):
        assert text.xy == (x, y)
        d = DATASETS.index(name)
        gains = [100 * (accuracy(d, 2, 4, s) - accuracy(d, 1, 4, s)) for s in (SEEDS if d != 1 else SEEDS[:2])]
        assert (x, y) == pytest.approx((30 + 5 * d, mean(gains)))
        assert (low, high) == pytest.approx((mean(gains) - stdev(gains), mean(gains) + stdev(gains)), abs=1e-6)
    assert axis.get_ylabel() == "gain of CLIP-Adapter\nover linear probe (points)" and "zero-shot" in axis.get_xlabel()


def test_a_gain_that_was_not_run_is_refused(expect_refused):
    with expect_refused("no runs of 'coop' with 1 shot in the table", ValueError):
        plots.gain_scatter(study(), "clip-adapter", "coop")


def test_labels_of_points_do_not_cover_each_other_or_leave_the_axis():
    names = tuple(f"bank number {i}" for i in range(6))
    table = DataFrame([row | {"dataset": name} for name in names for row in study(("one",), shots=(1,)).to_dict("records")])
    table["accuracy"] += 0.004 * table.dataset.map(names.index)  # a crowd
    figure = plots.gain_scatter(table, "mine", "linear-probe")
    (axis,) = figure.axes
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 6 and all(axis.bbox.x0 <= b.x0 and b.x1 <= axis.bbox.x1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_best_ratio_is_each_seeds_own_choice_on_validation_or_on_test():
    table = sweep(branches=("visual",))
    (axis,) = plots.best_ratio(table).axes
    for d, (x, y, low, high) in enumerate(drawn_points(axis)):
        chosen = [0.5 * ((d + seed) % 3) for seed in SEEDS]
        assert x == pytest.approx(100 * mean(accuracy(d, 1, 4, seed) for seed in SEEDS))  # at α = 0
        assert (y, low, high) == pytest.approx((mean(chosen), mean(chosen) - stdev(chosen), mean(chosen) + stdev(chosen)))
    assert "validation" in axis.get_title() and [text.get_text() for text in axis.texts] == ["one", "two"]
    (axis,) = plots.best_ratio(table, metric="accuracy").axes
    assert "TEST: cheating" in axis.get_title() and [point[1] for point in drawn_points(axis)] == [1.0, 1.0]


def test_of_equal_ratios_the_smallest_counts_and_a_table_of_fits_that_chose_will_do():
    table = sweep(("one",), ("visual",)).assign(val_accuracy=0.5).sample(frac=1, random_state=0)
    assert drawn_points(plots.best_ratio(table).axes[0])[0][1] == 0
    fits = DataFrame([dict(dataset="one", backbone="pocket", method=m, shots=16, seed=s, accuracy=0.4 + 0.1 * s, alpha=a,
                           val_accuracy=0.9) for s in SEEDS for m, a in (("zero-shot", None), ("clip-adapter", 0.2 * s))])
    assert drawn_points(plots.best_ratio(fits).axes[0])[0][:2] == pytest.approx((60, 0.4))


def test_a_best_ratio_that_cannot_be_told_is_refused(expect_refused):
    table = sweep()
    with expect_refused("no zero-shot accuracy of one", ValueError):
        plots.best_ratio(table[table.alpha > 0])
    with expect_refused("one number of shots; the table has 2", ValueError):
        plots.best_ratio(table.assign(shots=[1, 4] * (len(table) // 2)))


def test_differences_are_points_with_their_intervals_and_verdicts():
    found = [Comparison("clip-adapter", "zero-shot", 0.05, 0.02, 0.08, 12, 180),
             Comparison("coop", "clip-adapter", -0.04, -0.06, -0.01, 1, 1),
             Comparison("mine", "coop", 0.01, -0.03, 0.04, 3, 9)]
    (axis,) = plots.differences(found, "RN50-quickgelu").axes
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["CLIP-Adapter above\n12 banks, 180 pairs", "CLIP-Adapter above\n1 bank, 1 pair",
                     "cannot tell\n3 banks, 9 pairs"]
    for row, (c, container) in enumerate(zip(found, axis.containers)):
        line, _, (bar,) = container.lines
        (ends,) = bar.get_segments()
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((100 * c.difference, row))
        assert [x for x, _ in ends] == pytest.approx([100 * c.low, 100 * c.high])
        assert line.get_color() == (plots.COLOURS["clip-adapter"] if row < 2 else plots.COLOURS["zero-shot"])
    assert axis.get_yticklabels()[0].get_text() == "CLIP-Adapter\nminus zero-shot CLIP"
    assert "RN50-quickgelu" in axis.figure.get_supxlabel()
    named = plots.differences({"1 shot": found[0]})
    assert named.axes[0].get_yticklabels()[0].get_text() == "1 shot"
    assert "not stated" in named.get_supxlabel()


def test_a_reliability_diagram_shows_the_curve_its_counts_and_its_error():
    curve = DataFrame({"confidence": [0.3, 0.7, 0.95], "accuracy": [0.4, 0.5, 0.9], "count": [10, 30, 60]})
    figure = plots.reliability({"zero-shot": curve, "clip-adapter": curve}, "pocket")
    error = (10 * 0.1 + 30 * 0.2 + 60 * 0.05) / 100
    for axis, name in zip(figure.axes, ("zero-shot CLIP", "CLIP-Adapter")):
        assert axis.get_title() == f"{name}\nECE {100 * error:.1f} %"
        (points,) = axis.collections
        assert points.get_offsets().tolist() == [pytest.approx(p) for p in ((30, 40), (70, 50), (95, 90))]
        sizes = points.get_sizes().tolist()
        assert (sizes[2] - sizes[0]) / (sizes[1] - sizes[0]) == pytest.approx(50 / 20)
        assert axis.lines[0].get_xydata().tolist() == [[0, 0], [100, 100]]
