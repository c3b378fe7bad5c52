"""How sure: temperature, SaLS, prediction sets and the threshold for none of these, against arithmetic and simulation."""
import math

import pytest
import torch

import clip_adapter_lite as cal
from clip_adapter_lite.calibration import (
    Calibration,
    fit_temperature,
    lower_limit,
    needed,
    rescaled,
    set_limits,
    spread,
)
from clip_adapter_lite.reports import errors_before_and_after


@pytest.fixture
def working(toy_bank):
    """A fitted classifier, zero-shot, held-out images and an episode of a bank with much noise."""
    bank, held_out = toy_bank(val=60, test=40, noise=4.0).hold_out()
    episode = bank.episode(4)
    return cal.CLIPAdapter(alpha=0.3, steps=20).fit(episode), cal.ZeroShot().fit(episode), held_out, episode


# ── by arithmetic ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_limit_is_an_order_statistic():
    scores = torch.tensor([5.0, 1, 4, 2, 3, 9, 8, 7, 6])  # 1 … 9
    assert lower_limit(scores, 0.1) == 1 and lower_limit(scores, 0.3) == 3 and lower_limit(scores, 0.39) == 3
    assert lower_limit(scores, 0.09) == -math.inf  # ⌊0.09 · 10⌋ = 0: too few images for that
    assert [needed(share) for share in (0.05, 0.1, 0.5)] == [19, 9, 1]
    assert spread(0.1, 9) == pytest.approx(math.sqrt(1 * 9 / (10 ** 2 * 11)))  # Beta(1, 9)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(20_000, 5, generator=generator)
    labels = (logits / temperature).softmax(1).multinomial(1, generator=generator).squeeze(1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_sals_gives_zero_shots_range_and_keeps_the_order():
    logits, zero_shot = torch.tensor([[0.0, 10, 5], [2, 2, 2]]), torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    found = rescaled(logits, zero_shot)
    assert found[0].tolist() == [1, 3, 2]  # 0 … 10 onto 1 … 3
    assert torch.isfinite(found).all()  # a row without a range


def test_class_wise_limits_are_those_of_each_class():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.45, 0.55]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert set_limits(probabilities, labels, 0.5, class_wise=True).tolist() == pytest.approx([0.8, 0.4])
    # ⌊0.5 · 6⌋ = 3rd smallest of 0.9 0.8 0.7 0.4 0.55
    assert set_limits(probabilities, labels, 0.5).tolist() == pytest.approx([0.7, 0.7])


# ── by simulation ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("class_wise", [False, True])
def test_sets_cover_what_they_promise_over_1000_splits(class_wise):
    generator, splits, images, test, coverage = torch.Generator().manual_seed(3), 1000, 57, 100, 0.9
    covered, exact = torch.zeros(splits, 3, dtype=torch.float64), torch.zeros(splits, 3, dtype=torch.float64)
    for split in range(splits):
        labels = torch.randint(3, (images + test,), generator=generator)
        logits = torch.randn(images + test, 3, generator=generator) + 1.5 * torch.eye(3)[labels] * torch.tensor([1, 2, 0.5])
        chances, held = logits.double().softmax(1), slice(images)
        limits = set_limits(chances[held], labels[held], coverage, class_wise)
        found = Calibration(limits=limits).sets(logits[images:]).gather(1, labels[images:, None]).squeeze(1).double()
        for c in range(3):
            mine = labels[images:] == c if class_wise else slice(None)
            many = int((labels[held] == c).sum()) if class_wise else images
            covered[split, c] = found[mine].mean()
            exact[split, c] = 1 - math.floor((1 - coverage) * (many + 1) + 1e-9) / (many + 1)
    # the exact chance is known: it depends on how many calibrate
    error = covered.std(0) / math.sqrt(splits)
    assert ((covered.mean(0) - exact.mean(0)).abs() < 4 * error).all(), (covered.mean(0), exact.mean(0), error)
    assert (exact >= coverage).all()


def test_rejections_of_known_pictures_keep_the_promise_over_1000_splits():
    generator, shares = torch.Generator().manual_seed(4), []
    for _ in range(1000):
        scores = torch.randn(40 + 200, 1, generator=generator)
        limit = lower_limit(scores[:40, 0], 0.1)
        shares.append(Calibration(threshold=limit).rejected(scores[40:]).double().mean().item())
    mean, error = sum(shares) / 1000, torch.tensor(shares).std().item() / math.sqrt(1000)
    assert abs(mean - 4 / 41) < 4 * error and mean <= 0.1


# ── on a classifier ───────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_calibrated_unless_asked(working):
    fitted, _, _, episode = working
    x = episode.test.view()
    assert fitted.calibration is None and not fitted.rejected(x).any()
    assert torch.equal(fitted.probabilities(x), fitted.logits(x).softmax(1))
    with pytest.raises(ValueError, match="no prediction sets"):
        fitted.prediction_sets(x)


def test_calibrated_probabilities_sets_and_rejections(working):
    fitted, zero_shot, held_out, episode = working
    x, held = episode.test.view(), fitted.logits(held_out.view()).double()
    found = cal.calibrate(fitted, held_out, false_reject=0.1, coverage=0.8)
    assert torch.equal(found.logits(x), fitted.logits(x)) and found.calibration.images == len(held_out) == 150
    assert torch.allclose(found.probabilities(x), (fitted.logits(x) / found.calibration.temperature).softmax(1))
    # ⌊0.1 · 151⌋ = the 15th smallest
    assert found.calibration.threshold == sorted(held.amax(1).tolist())[14]
    assert found.rejected(held_out.view()).sum() == 14
    assert found.prediction_sets(held_out.view()).gather(1, held_out.labels[:, None]).sum() == 150 - 29  # ⌊0.2 · 151⌋ = 30
    before, after = errors_before_and_after(found, held_out)
    assert before == cal.calibration_error(fitted.probabilities(held_out.view()), held_out.labels) != after
    scaled = cal.calibrate(fitted, None, scaling="sals", zero_shot=zero_shot)
    assert torch.allclose(scaled.probabilities(x), rescaled(fitted.logits(x), zero_shot.logits(x)).softmax(1), atol=1e-6)


@pytest.mark.parametrize("options", [dict(false_reject=0.1, coverage=0.8, class_wise=True), dict(scaling="sals")])
def test_a_calibration_goes_through_a_file(working, tmp_path, options):
    fitted, zero_shot, held_out, episode = working
    before = cal.calibrate(fitted, held_out, zero_shot=zero_shot, **options)
    after = cal.load_classifier(cal.save_classifier(before, tmp_path / "c.safetensors"))
    x = episode.test.view()
    assert torch.equal(before.probabilities(x), after.probabilities(x))
    assert torch.equal(before.rejected(x), after.rejected(x))
    if "coverage" in options:
        assert torch.equal(before.prediction_sets(x), after.prediction_sets(x))
        assert after.calibration.coverage == 0.8 and after.calibration.notes == before.calibration.notes


def test_a_file_without_calibration_is_what_it_was(working, tmp_path):
    from safetensors import safe_open
    with safe_open(cal.save_classifier(working[0], tmp_path / "c.safetensors"), "pt") as file:
        assert "calibration" not in file.metadata()["classifier"] and not [k for k in file.keys() if "calibration" in k]
    assert cal.load_classifier(tmp_path / "c.safetensors").calibration is None


def test_the_half_that_calibrates_selects_nothing(toy_bank):
    bank = toy_bank(val=[1, 2, 5, 8, 4])
    kept, held = bank.hold_out(seed=2)
    counts = [torch.bincount(part.labels, minlength=5).tolist() for part in (kept.splits["val"], held)]
    assert counts == [[1, 1, 3, 4, 2], [0, 1, 2, 4, 2]]
    rows = {tuple(row) for row in held.view().tolist()}
    assert not rows & {tuple(row) for row in kept.splits["val"].view().float().tolist()}
    again = bank.hold_out(seed=2)[1]
    assert torch.equal(again.features, held.features)


def test_what_cannot_be_calibrated_is_refused_or_said(working, toy_bank, expect_refused):
    fitted, zero_shot, held_out, episode = working
    few = held_out.take(slice(8))
    with expect_refused("no held-out images to calibrate on"):
        cal.calibrate(fitted, None)
    with expect_refused("no class with two"):
        toy_bank(val=1).hold_out()
    with expect_refused("takes 19 held-out images at least, and there are 8", ValueError):
        cal.calibrate(fitted, few, false_reject=0.05)
    with expect_refused("coverage must be between 0 and 1", ValueError):
        cal.calibrate(fitted, held_out, coverage=90)
    with expect_refused("scaling must be one of", ValueError):
        cal.calibrate(fitted, held_out, scaling="platt")
    with expect_refused("zero_shot=", ValueError):
        cal.calibrate(fitted, None, scaling="sals")
    notes = cal.calibrate(fitted, few, coverage=0.9).calibration.notes
    assert "rests on 8 images" in notes[0] and "takes 9 held-out images at least and there are 8" in notes[1]
    found = cal.calibrate(fitted, few, coverage=0.95, class_wise=True).calibration
    assert "5 classes of 5 are in every set" in found.notes[1]
    right = few.take((zero_shot.logits(few.view()).argmax(1) == few.labels).nonzero().squeeze(1))
    found = cal.calibrate(zero_shot, right).calibration
    assert found.temperature == 1 and "The temperature stays 1" in found.notes[0]


# ── pictures of no class ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_open_set_is_counted_as_said(toy_bank):
    found = cal.open_set(toy_bank(classes=8, val=30, test=20, noise=3.0), cal.ZeroShot(), 4, seed=1, false_reject=0.1)
    assert len(found.left_out) == 2 and (len(found.known), len(found.unknown)) == (120, 40)
    pairs = [(a > b) + 0.5 * (a == b) for a in found.known.tolist() for b in found.unknown.tolist()]
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs))
    assert found.rejected == pytest.approx((found.unknown < found.threshold).double().mean().item())
    assert found.false_reject == pytest.approx((found.known < found.threshold).double().mean().item())
    assert "2 classes left out" in str(found)


def test_an_open_set_needs_three_classes(toy_bank, expect_refused):
    with expect_refused("takes three"):
        cal.open_set(toy_bank(classes=2), cal.ZeroShot(), 2)
