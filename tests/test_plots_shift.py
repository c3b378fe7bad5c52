"""Figures of one fit in several places show what they are given."""
import pytest
from pandas import DataFrame

from clip_adapter_lite import plots


def runs(**accuracies) -> DataFrame:
    """A row per dataset, α and seed; accuracies: dataset → {α: accuracies of the seeds}."""
    return DataFrame([dict(dataset=dataset, backbone="pocket", method="clip-adapter", shots=16, seed=seed, alpha=alpha,
                           accuracy=accuracy) for dataset, by_alpha in accuracies.items()
                      for alpha, found in by_alpha.items() for seed, accuracy in enumerate(found, 1)])


def test_accuracy_over_alpha_is_a_mean_with_its_deviation_and_a_level_at_zero_shot():
    table = runs(photo={0: [0.5, 0.5], 0.5: [0.7, 0.9], 1: [0.6, 0.8]}, sketch={0.5: [0.3, 0.3], 1: [0.1, 0.2]})
    (axis,) = plots.accuracy_over_alpha(table).axes
    photo, sketch = (container.lines for container in axis.containers)
    assert photo[0].get_xydata().tolist() == [pytest.approx(p) for p in ((0, 50), (0.5, 80), (1, 70))]
    assert sketch[0].get_xydata().tolist() == [pytest.approx(p) for p in ((0.5, 30), (1, 15))]
    (bars,) = photo[2]
    assert [y for _, y in bars.get_segments()[1]] == pytest.approx([80 - 200 ** 0.5, 80 + 200 ** 0.5])
    levels = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in levels] == [[50, 50]], "sketch has no α = 0"
    assert levels[0].get_color() == photo[0].get_color() != sketch[0].get_color()
    assert {text.get_text() for text in axis.texts} == {"photo", "sketch"}
    assert "mean of 2 seeds" in axis.figure.get_supxlabel() and "pocket CLIP" in axis.figure.get_supxlabel()


def test_a_table_without_alpha_is_refused(expect_refused):
    with expect_refused("no column 'alpha'", ValueError):
        plots.accuracy_over_alpha(runs(a={0: [0.5]}).drop(columns="alpha"))


def test_titles_of_panels_side_by_side_keep_their_distance():
    """As in notebook 09, whose titles touched: by matplotlib's own boxes, at least two letters apart."""
    curve = DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.38, 0.9], "count": [10, 30]})
    figure = plots.reliability_shift({method: {"pacs-photo": curve, "pacs-sketch": curve}
                                      for method in ("zero-shot", "linear-probe", "clip-adapter")}, "pocket")
    figure.draw_without_rendering()
    boxes = sorted((axis.title.get_window_extent() for axis in figure.axes), key=lambda box: box.x0)
    letter = figure.axes[0].title.get_fontsize() * figure.dpi / 72
    assert all(right.x0 - left.x1 > 2 * letter for left, right in zip(boxes, boxes[1:]))


def test_reliability_under_a_shift_overlays_the_places_and_names_their_errors():
    home = DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.38, 0.9], "count": [10, 30]})  # ECE 0.12 / 4
    away = DataFrame({"confidence": [0.9], "accuracy": [0.3], "count": [5]})
    figure = plots.reliability_shift({"zero-shot": {"photos": home, "sketches": away}, "mine": {"sketches": away}}, "pocket")
    first, second = figure.axes
    assert first.get_title() == "zero-shot CLIP\nECE 3 % photos\n60 % sketches"
    assert second.get_title() == "mine\nECE 60 % sketches"
    photos, sketches = first.collections
    assert photos.get_offsets().tolist() == [pytest.approx([50, 38]), pytest.approx([90, 90])]
    assert sketches.get_offsets().tolist() == [pytest.approx([90, 30])]
    small, large = photos.get_sizes()
    assert small < large < sketches.get_sizes()[0], "the area grows with the share of the images"
    alone = second.collections[0]
    assert alone.get_facecolor().tolist() == sketches.get_facecolor().tolist() != photos.get_facecolor().tolist()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["photos", "sketches"]
    assert first.lines[0].get_xydata().tolist() == [[0, 0], [100, 100]]


def scales(**errors) -> DataFrame:
    return DataFrame([dict(dataset=dataset, backbone="pocket", method=method, scale=scale, error=error)
                      for dataset, methods in errors.items() for method, line in methods.items()
                      for scale, error in line.items()])


def test_error_over_scale_marks_the_lowest_point_of_each_line_and_the_scales_that_are_named():
    table = scales(photos={"coop": {2: 0.3, 0.5: 0.2, 1: 0.1}, "mine": {1: 0.0, 2: 0.7}},
                   sketches={"coop": {0.5: 0.1, 1: 0.4}})
    figure = plots.error_over_scale(table, {"now": 1, "then": 4})
    photos, sketches = figure.axes
    curve, low, mine, least = photos.lines[2:]
    assert curve.get_xydata().tolist() == [pytest.approx(p) for p in ((0.5, 20), (1, 10), (2, 30))], "in order of the scale"
    assert low.get_xydata().tolist() == [pytest.approx((1, 10))] and least.get_xydata().tolist() == [pytest.approx((1, 0))]
    assert curve.get_color() == plots.COLOURS["coop"] == sketches.lines[2].get_color() != mine.get_color()
    for axis in (photos, sketches):
        assert [line.get_xdata()[0] for line in axis.lines[:2]] == [1, 4]
        assert [text.get_text() for text in axis.texts] == ["now", "then"]
        low, high = axis.get_ylim()
        assert low == 0 and high >= 70, "one range for all panels, from zero, with all that is drawn"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CoOp", "mine"]


def test_error_over_scale_needs_its_columns(expect_refused):
    with expect_refused("no column 'scale'", ValueError):
        plots.error_over_scale(scales(a={"coop": {1: 0.1}}).drop(columns="scale"))
