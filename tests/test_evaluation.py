"""Evaluation: every value is checked against arithmetic done by hand, by scikit-learn, or by a slow independent loop."""
import random
import subprocess
import sys
from statistics import mean

import numpy as np
import pandas as pd
import pytest
import torch

from clip_adapter_lite.evaluation import (
    Comparison,
    accuracy,
    calibration_error,
    paired_bootstrap,
    per_class_accuracy,
    reliability_curve,
)

# predicted classes: 0, 2, 1, 1, 0
LOGITS = torch.tensor([[3., 1, 0, 0], [0, 1, 2, 0], [0, 5, 1, 0], [-1, 0, -1, -9], [2, 1, 0, 0]])
LABELS = torch.tensor([0, 2, 1, 2, 1])


def two_class(confidences, correct, dtype=torch.float64):
    """Probabilities [N, 2] that predict class 0 with these confidences, and labels that make them correct or not."""
    confidence = torch.tensor(confidences, dtype=dtype)
    return torch.stack([confidence, 1 - confidence], 1), 1 - torch.tensor(correct).long()


# ── accuracy ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_is_the_counted_fraction():
    assert accuracy(LOGITS, LABELS) == 3 / 5
    assert accuracy(LOGITS.numpy(), LABELS.numpy().astype("uint8")) == 3 / 5


def test_per_class_accuracy_against_a_hand_count():
    # class 0: 1 of 1; class 1: the image predicted 1 of two; class 2: 1 of 2; class 3: no image
    torch.testing.assert_close(per_class_accuracy(LOGITS, LABELS), torch.tensor([1, .5, .5, torch.nan]).double(),
                               equal_nan=True)


def test_per_class_accuracy_of_a_class_without_a_column_is_0_and_of_none_is_nan():
    labels = torch.tensor([0, 2, 1, 5, 5])
    torch.testing.assert_close(per_class_accuracy(LOGITS, labels, classes=6),
                               torch.tensor([1, 1, 1, torch.nan, torch.nan, 0]).double(), equal_nan=True)


def test_per_class_accuracy_is_recall_and_averages_to_accuracy():
    from sklearn.metrics import recall_score
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 7, generator=generator), torch.randint(6, (300,), generator=generator)
    ours = per_class_accuracy(logits, labels)
    expected = recall_score(labels, logits.argmax(1), labels=range(7), average=None, zero_division=np.nan)
    np.testing.assert_allclose(ours, expected)
    counts = torch.bincount(labels, minlength=7)
    assert (ours[:6] * counts[:6]).sum() / 300 == pytest.approx(accuracy(logits, labels))


@pytest.mark.parametrize("logits, labels, message", [
    (LOGITS, LABELS[:4], r"got \[5, 4\] and torch.int64 of shape \[4\]"),
    (LOGITS[0], LABELS, r"scores of shape \[N, C\]"),
    (LOGITS, LABELS.float(), "N integer labels.*torch.float32"),
    (LOGITS[:0], LABELS[:0], "N at least 1"),
    (LOGITS.where(LOGITS != 5, torch.nan), LABELS, "1 rows of the scores hold NaN"),
    (LOGITS.where(LOGITS != 5, torch.inf), LABELS, "1 rows of the scores hold NaN or no finite highest entry"),
    (LOGITS.index_fill(0, torch.tensor([1, 3]), -torch.inf), LABELS, "2 rows of the scores"),
    (LOGITS[:, :0], LABELS, r"got \[5, 0\]"), (LOGITS + 0j, LABELS, "scores of shape"), (None, LABELS, "got NoneType"),
    ([["a"], ["b"]], [0, 1], "Expected scores of shape .*; got words; give one row"),
    (LOGITS, ["cat"] * 5, "N integer labels .*; got words; give each the place of its class among the class names"),
    (LOGITS, LABELS > 0, "N integer labels.*torch.bool"), (LOGITS, [0, None, 1, 1, 1], "got list that is no array"),
    (LOGITS, LABELS + 2, "run from 2 to 4 but there are 4 classes"),
    (LOGITS, LABELS - 1, "run from -1 to 1"),
])
@pytest.mark.parametrize("function", [accuracy, per_class_accuracy, calibration_error])
def test_scores_and_labels_that_do_not_fit_are_refused(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


@pytest.mark.parametrize("given", [
    lambda x: x.tolist(), lambda x: x.numpy()[::-1][::-1], lambda x: x.repeat_interleave(2)[::2].reshape(x.shape),
    lambda x: pd.DataFrame(x.numpy(), index=[9, 7, 5, 3, 1]).squeeze(axis=1) if x.ndim == 1 else pd.DataFrame(x.numpy()),
    lambda x: x.clone().requires_grad_() * 1 if x.is_floating_point() else x.to(torch.uint8)])
def test_scores_and_labels_come_in_whatever_holds_them(given):
    scores, labels = given(LOGITS), given(LABELS)
    assert accuracy(scores, labels) == 3 / 5
    assert per_class_accuracy(scores, labels, classes=np.int64(5))[:3].tolist() == [1, .5, .5]
    sure = LOGITS.softmax(1)
    assert calibration_error(given(sure), labels, bins=np.int64(4)) == calibration_error(sure, LABELS, bins=4)


def test_masked_columns_do_not_keep_scores_from_being_counted():
    assert accuracy(LOGITS.where(LOGITS > -1, -torch.inf), LABELS) == 3 / 5


@pytest.mark.parametrize("number", [0, -1, 2.5, "3", None, True])
def test_bins_and_classes_are_whole_numbers_from_1(number, expect_refused):
    with expect_refused("bins must be", ValueError):
        calibration_error(*two_class([.5], [True]), bins=number)
    if number is not None:  # as many as there are columns
        with expect_refused("classes must be", ValueError):
            per_class_accuracy(LOGITS, LABELS, classes=number)


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_calibration_error_by_hand():
    # Five bins: (0, .2] (.2, .4] (.4, .6] (.6, .8] (.8, 1]; six images:
    #   (.4, .6]: .50 right, .60 wrong (on the edge: the bin below) → confidence .55, accuracy 1/2, count 2, gap .05
    #   (.6, .8]: .70 wrong                                        → confidence .70, accuracy 0,   count 1, gap .70
    #   (.8, 1.]: .90 right, .95 wrong, 1.0 right                  → confidence .95, accuracy 2/3, count 3, gap .95 - 2/3
    # error = (2 · .05 + 1 · .70 + 3 · (.95 - 2/3)) / 6 = (.10 + .70 + .85) / 6 = 1.65 / 6 = .275
    probabilities, labels = two_class([.95, .5, .7, 1., .6, .9], [False, True, False, True, False, True])
    curve = reliability_curve(probabilities, labels, bins=5)
    assert list(curve.columns) == ["confidence", "accuracy", "count"]
    np.testing.assert_allclose(curve.to_numpy(), [[.55, .5, 2], [.7, 0, 1], [.95, 2 / 3, 3]])
    assert calibration_error(probabilities, labels, bins=5) == pytest.approx(.275)


def test_the_confidence_is_that_of_the_predicted_class_not_of_the_label():
    # the label's probability is .1, the top one .7 and wrong: gap .7
    assert calibration_error(torch.tensor([[.2, .7, .1]]), torch.tensor([2])) == pytest.approx(.7)


def test_perfect_calibration_has_error_0():
    # in each bin as many of ten are right as the confidence says: 6 at .6, 8 at .8, 10 at 1.0
    confidences = [.6] * 10 + [.8] * 10 + [1.] * 10
    probabilities, labels = two_class(confidences, [i < 6 for i in range(10)] + [i < 8 for i in range(10)] + [True] * 10)
    assert calibration_error(probabilities, labels) == pytest.approx(0, abs=1e-12)


def test_certain_and_always_wrong_has_error_1_and_one_bin():
    probabilities, labels = two_class([1.] * 4, [False] * 4)
    assert calibration_error(probabilities, labels) == 1
    assert reliability_curve(probabilities, labels).to_numpy().tolist() == [[1, 0, 4]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(dtype):
    # Edges of ten bins, each met exactly: with .55, .65 … in the bins below them there are five bins of two.
    confidences = [k / 10 for k in range(6, 11)] + [k / 10 - .05 for k in range(6, 11)]
    curve = reliability_curve(*two_class(confidences, [True] * 10, dtype), bins=10)
    assert curve["count"].tolist() == [2] * 5
    np.testing.assert_allclose(curve["confidence"], np.arange(6, 11) / 10 - .025, atol=1e-3)


def test_softmax_that_overshoots_1_is_in_the_last_bin():
    curve = reliability_curve(torch.tensor([[1 + 1e-6, 0.], [.99, .01]]), torch.tensor([0, 0]))
    assert curve["count"].tolist() == [2]


def test_the_curve_agrees_with_scikit_learn():
    from sklearn.calibration import calibration_curve
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.softmax(2 * torch.randn(500, 5, generator=generator), 1).double()
    labels = torch.randint(5, (500,), generator=generator)
    confidence, predicted = probabilities.max(1)
    right, promised = calibration_curve(predicted == labels, confidence, n_bins=15)
    curve = reliability_curve(probabilities, labels)
    np.testing.assert_allclose(curve[["accuracy", "confidence"]].to_numpy(), np.stack([right, promised], 1))
    assert curve["count"].sum() == 500


@pytest.mark.parametrize("scores", [LOGITS, LOGITS.softmax(1) * .9, torch.tensor([[-.5, 1.5, 0, 0]] * 5)])
def test_what_is_not_probabilities_is_refused(scores):
    with pytest.raises(ValueError, match="These are not probabilities: row 0 .*softmax"):
        calibration_error(scores, LABELS)


# ── the paired bootstrap ──────────────────────────────────────────────────────────────────────────────────────────


def runs(differences, a="a", b="b"):
    """A table as of `compare` from {(dataset, backbone, seed, shots): a - b}; shuffled, b's accuracies all different."""
    rows = []
    for i, ((dataset, backbone, seed, shots), difference) in enumerate(differences.items()):
        base = .3 + (37 * i % 100) / 400
        for method, value in ((a, base + difference), (b, base), ("other", .99)):
            rows.append({"dataset": dataset, "backbone": backbone, "method": method, "shots": shots, "seed": seed,
                         "accuracy": value, "val_accuracy": 1 - value})
    random.Random(5).shuffle(rows)
    return pd.DataFrame(rows)


def ragged(banks=4, bank_sd=.01, seed_sd=.03, shot_sd=.004, truth=.01, seed=11):
    """Differences with effects of bank, seed and shots; banks have unequal numbers of seeds, seeds of shots."""
    draw, found = random.Random(seed), {}
    for bank in range(banks):
        bank_effect = draw.gauss(truth, bank_sd)
        for seed in range(2 + bank % 3):
            seed_effect = draw.gauss(0, seed_sd)
            for shots in (1, 2, 4, 8, 16)[:5 if bank % 2 else 2]:
                # the same dataset under two backbones: two banks
                found[f"d{bank // 2}", f"v{bank % 2}", seed, shots] = bank_effect + seed_effect + draw.gauss(0, shot_sd)
    return found


def slow_bootstrap(differences, resamples, seed):
    """The definition in plain loops: banks with replacement, in each copy seeds with replacement, mean of all."""
    tree = {}
    for (dataset, backbone, run_seed, _), difference in differences.items():
        tree.setdefault((dataset, backbone), {}).setdefault(run_seed, []).append(difference)
    banks = [list(seeds.values()) for seeds in tree.values()]
    draw, means = random.Random(seed), []
    for _ in range(resamples):
        values = []
        for bank in draw.choices(banks, k=len(banks)):
            for shots in draw.choices(bank, k=len(bank)):
                values += shots
        means.append(sum(values) / len(values))
    return means


def test_difference_is_the_plain_mean_of_paired_differences():
    differences = ragged()
    found = paired_bootstrap(runs(differences), "a", "b", resamples=100)
    assert found.difference == pytest.approx(mean(differences.values()), abs=1e-12)
    assert (found.a, found.b, found.banks, found.runs) == ("a", "b", 4, len(differences))
    assert found.low < found.difference < found.high
    other = paired_bootstrap(runs(differences), "a", "b", metric="val_accuracy", resamples=100)
    assert other.difference == pytest.approx(-mean(differences.values()), abs=1e-12)


@pytest.mark.parametrize("differences", [ragged(4), ragged(5, bank_sd=.03, seed_sd=.01), ragged(1)])
def test_interval_agrees_with_a_slow_loop(differences):
    # 8000 and 40 000 resamples: the standard error of an end of the interval is about 2.7 sd / sqrt(n), with sd that of
    # the resampled means, so .030 and .013 sd, together .033 sd. Tolerance: 3 of these, .1 sd. Resampling runs instead
    # of seeds, or banks alone, or seeds alone, moves an end by more.
    expected = np.array(slow_bootstrap(differences, 8000, seed=3))
    found = paired_bootstrap(runs(differences), "a", "b", resamples=40_000)
    if len({key[:2] for key in differences}) == 1:  # a handful of distinct values: the quantiles are exactly these
        assert (found.low, found.high) == pytest.approx((expected.min(), expected.max()), abs=1e-9)
    else:
        assert (found.low, found.high) == pytest.approx(np.quantile(expected, [.025, .975]), abs=.1 * expected.std())


def test_a_constant_difference_has_an_interval_of_no_width():
    found = paired_bootstrap(runs({key: .1 for key in ragged()}), "a", "b", resamples=500)
    assert found.low == found.high == pytest.approx(.1)
    assert found.difference == pytest.approx(.1) and found.verdict == "a above b"


def test_differences_that_cancel_in_every_seed_are_no_difference():
    # .8 - .7 and .4 - .5 sum to 1e-16, not to 0, in floating point: that bit must not decide
    table = pd.DataFrame([("d", "v", m, shots, seed, value) for seed in range(3) for m, shots, value in
                          (("a", 1, .8), ("b", 1, .7), ("a", 2, .4), ("b", 2, .5))],
                         columns=["dataset", "backbone", "method", "shots", "seed", "accuracy"])
    assert paired_bootstrap(table, "a", "b", resamples=100).verdict == "cannot tell"


def test_swapping_the_methods_mirrors_everything_exactly():
    table = runs(ragged())
    for resamples in (99, 1000):
        one, other = (paired_bootstrap(table, *pair, resamples=resamples) for pair in ("ab", "ba"))
        assert (one.difference, one.low, one.high) == (-other.difference, -other.high, -other.low)
        assert (one.a, one.b, one.banks, one.runs) == (other.b, other.a, other.banks, other.runs)


def test_row_order_index_and_other_methods_do_not_matter_and_the_seed_does():
    table = runs(ragged())
    found = paired_bootstrap(table, "a", "b", resamples=1000)
    assert found == paired_bootstrap(table, "a", "b", resamples=1000)
    assert found == paired_bootstrap(table[::-1].reset_index(drop=True), "a", "b", resamples=1000)
    assert found == paired_bootstrap(table[table["method"] != "other"], "a", "b", resamples=1000)
    assert found != paired_bootstrap(table, "a", "b", resamples=1000, seed=1)


def test_the_table_is_left_as_it_was():
    table = runs(ragged())
    before = table.copy(deep=True)
    paired_bootstrap(table, "a", "b", resamples=10)
    pd.testing.assert_frame_equal(table, before)


def test_banks_that_disagree_cannot_be_told_however_many_seeds():
    # Four banks at +5 points, two at -5: the mean is +1.7, and 200 near-identical seeds a bank say nothing of new banks.
    draw = random.Random(2)
    differences = {(f"d{bank}", "v", seed, 1): (.05 if bank < 4 else -.05) + draw.gauss(0, .001)
                   for bank in range(6) for seed in range(200)}
    assert paired_bootstrap(runs(differences), "a", "b", resamples=2000).verdict == "cannot tell"
    good = {key: value for key, value in differences.items() if key[0] < "d4"}
    assert paired_bootstrap(runs(good), "a", "b", resamples=2000).verdict == "a above b"


def test_within_a_bank_seeds_are_resampled_and_not_runs():
    # One bank; the sign of a difference is its seed's, so forty pairs are worth only four.
    differences = {("d", "v", seed, shots): .02 if seed else -.01 for seed in range(4) for shots in range(1, 11)}
    # The four seeds drawn: all 0 in 1 of 256 resamples, three of four 0 in 12 of 256, so the 2.5 % point is the latter,
    # (-.03 + .02) / 4; all four not 0 in 81 of 256.
    found = paired_bootstrap(runs(differences), "a", "b")
    assert (found.low, found.high) == pytest.approx((-.0025, .02)) and found.verdict == "cannot tell"
    assert found.banks == 1 and found.runs == 40


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # 150 simulated studies of ten banks × 2 to 4 seeds × 2 or 5 shots, truth 0; binomial noise is ±2 %. The percentile
    # bootstrap over ten banks covers a little less than 95 %; with all runs taken as independent it would cover 49 %.
    covered = 0
    for study in range(150):
        differences = ragged(10, bank_sd=.02, seed_sd=.02, truth=0, seed=study)
        found = paired_bootstrap(runs(differences), "a", "b", resamples=400)
        covered += found.low <= 0 <= found.high
    assert .86 <= covered / 150 <= .99


@pytest.mark.parametrize("numbers, verdict, printed", [
    ((.032, .011, .05), "x above y", "x above y: +3.2 points [+1.1, +5.0], 12 banks, 360 runs"),
    ((-.032, -.05, -.011), "y above x", "y above x: +3.2 points [+1.1, +5.0], 12 banks, 360 runs"),
    ((.01, -.011, .031), "cannot tell", "cannot tell x from y: +1.0 points [-1.1, +3.1], 12 banks, 360 runs"),
    ((.01, 0., .02), "cannot tell", "cannot tell x from y: +1.0 points [+0.0, +2.0], 12 banks, 360 runs"),
    ((-.01, -.02, 0.), "cannot tell", "cannot tell x from y: -1.0 points [-2.0, +0.0], 12 banks, 360 runs"),
])
def test_the_verdict_follows_the_rule(numbers, verdict, printed):
    found = Comparison("x", "y", *numbers, banks=12, runs=360)
    assert found.verdict == verdict and str(found) == printed


def test_a_long_comparison_is_printed_on_two_lines_as_one_would_wrap():
    long = Comparison("clip-adapter(alpha=learned)", "clip-adapter(alpha=0.2, reduction=8)", .01, -.01, .03, banks=1, runs=1)
    assert str(long).splitlines() == ["cannot tell clip-adapter(alpha=learned) from clip-adapter(alpha=0.2, reduction=8):",
                                      "      +1.0 points [-1.0, +3.0], 1 bank, 1 run"]


def without(table, **where):
    """The table without the rows that match all of these."""
    return table[~np.logical_and.reduce([table[column] == value for column, value in where.items()])]


TABLE = runs(ragged())
FIRST = {"dataset": "d0", "backbone": "v1", "seed": 1, "shots": 8}
IS_FIRST = np.logical_and.reduce([TABLE[column] == value for column, value in FIRST.items()])


@pytest.mark.parametrize("table, message", [
    (TABLE.drop(columns="seed"), "no column 'seed' .it has dataset, .*val_accuracy"),
    (TABLE.drop(columns="accuracy"), "no column 'accuracy'"),
    (without(TABLE, method="a"), "Method 'a' is not in the table, which has b, other;"),
    (TABLE[:0], "Method 'a' is not in the table, which has no runs"),
    (without(without(TABLE, method="a", backbone="v0"), method="b", backbone="v1"), "No run of 'a' has a run of 'b'"),
    (without(TABLE, method="a", **FIRST),
     "^1 run is without a partner.*: dataset d0, backbone v1, shots 8, seed 1, method b; run the missing"),
    (without(TABLE, method="b", **FIRST), "^1 run is without a partner.*shots 8, seed 1, method a;"),
    (without(without(TABLE, method="b", **FIRST), method="a", dataset="d1", backbone="v0", seed=0, shots=2),
     "^2 runs are without a partner"),
    (pd.concat([TABLE, TABLE[IS_FIRST & (TABLE["method"] == "a")]]),
     "^1 run is there more than once.*d0, backbone v1, shots 8, seed 1, method a; drop"),
    (TABLE.assign(accuracy=TABLE["accuracy"].mask(IS_FIRST)), "^2 runs are without a finite accuracy.*shots 8, seed 1"),
    (TABLE.assign(accuracy=TABLE["accuracy"].mask(IS_FIRST, np.inf)), "^2 runs are without a finite accuracy"),
    (TABLE[(TABLE["dataset"] == "d0") & (TABLE["backbone"] == "v1") & (TABLE["seed"] == 1)],
     "One bank with one seed leaves nothing to resample"),
])
def test_a_table_that_cannot_be_compared_is_refused(table, message):
    with pytest.raises(ValueError, match=message) as caught:
        paired_bootstrap(table, "a", "b", resamples=10)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_what_is_wrong_with_other_methods_does_not_matter():
    table = TABLE.assign(accuracy=TABLE["accuracy"].mask(TABLE["method"] == "other"))
    table = pd.concat([table, table[table["method"] == "other"][:3]])
    assert paired_bootstrap(table, "a", "b", resamples=50) == paired_bootstrap(TABLE, "a", "b", resamples=50)


def test_importing_loads_neither_pandas_nor_scikit_learn():
    code = "import sys, clip_adapter_lite.evaluation; print(*sorted({'pandas', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize("options, says", [
    (dict(resamples=0), "resamples must be at least 1; got 0"), (dict(resamples=1e4), "resamples must be a whole number"),
    (dict(metric="dataset"), "metric must be a column of numbers, such as accuracy; got 'dataset'"),
    (dict(metric="seed"), "metric must be a column of numbers, such as accuracy; got 'seed'")])
def test_what_cannot_be_resampled_is_refused(options, says, expect_refused):
    with expect_refused(says, ValueError):
        paired_bootstrap(TABLE, "a", "b", **options)
