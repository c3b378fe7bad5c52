"""Where a classifier goes wrong, counted by hand; every shot of unequal classes; fitting again to all."""
import csv

import pytest
import torch
from torch.nn.functional import cross_entropy

import clip_adapter_lite as cal
from clip_adapter_lite.inference import zero_shot
from clip_adapter_lite.methods.base import class_weights
from clip_adapter_lite.plots import confusion
from clip_adapter_lite.splits import Split

NAMES = tuple(f"{i}.jpg" for i in range(6))


@pytest.fixture
def judged():
    """Three classes, six pictures: a is right in 2 of 3, b in 1 of 2 and c never (taken for a)."""
    class Scale:
        logit_scale, name, tag = 1.0, "none", ""
    classifier = zero_shot(torch.eye(3), ("a", "b", "c"), Scale)
    found = torch.eye(3)[[0, 0, 1, 1, 0, 0]]
    return classifier, Split(found, torch.tensor([0, 0, 0, 1, 1, 2]), NAMES)


def test_a_report_counts(judged, tmp_path):
    report = cal.report(*judged)
    assert report.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert report.accuracy == 0.5 and report.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert report.classes["images"].tolist() == [3, 2, 1] and report.classes["right"].tolist() == [2, 1, 0]
    assert report.classes["precision"].tolist()[:2] == [0.5, 0.5] and report.classes["precision"].isna()[2]
    worst = report.worst()
    # one each; the larger share of its class first
    assert worst["true"].tolist() == ["c", "b", "a"] and worst["predicted"].tolist() == ["a", "a", "b"]
    assert worst["pictures"].tolist() == [["5.jpg"], ["4.jpg"], ["2.jpg"]]
    assert "c taken for a: 5.jpg" in str(report) and report.rejected is None
    with report.save(tmp_path / "c.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["true class \\ predicted", "a", "b", "c"], ["a", "2", "1", "0"],
                                          ["b", "1", "1", "0"], ["c", "1", "0", "0"]]
    report.save(tmp_path / "c.csv")  # over its own
    texts = [text.get_text() for text in confusion(report, "toy").axes[0].texts]
    assert texts == ["2", "1", "1", "1", "1"]


def test_a_report_without_names_gives_places(judged):
    classifier, split = judged
    assert cal.report(classifier, Split(split.features, split.labels)).pictures[2, 0] == ["image 5"]


def test_only_the_most_confused_classes_are_drawn(judged):
    figure = confusion(cal.report(*judged), "toy", most=2)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert "the 2 of 3 classes of the pairs confused most" in figure.axes[0].get_title("left")


def test_reports_refuse(judged, tmp_path, expect_refused):
    classifier, split = judged
    with expect_refused("takes a Split"):
        cal.report(classifier, split.features)
    with expect_refused("this split is empty"):
        cal.report(classifier, split.take(slice(0)))
    (tmp_path / "mine.csv").write_text("my,own\n")
    with expect_refused("is there already", FileExistsError):
        cal.report(classifier, split).save(tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "my,own\n"
    with expect_refused("one for each of its 6 images"):
        Split(split.features, split.labels, NAMES[:2])


def test_names_go_with_their_pictures_and_through_a_file(judged, toy_bank, tmp_path):
    _, split = judged
    assert split.take(torch.tensor([4, 1])).names == ("4.jpg", "1.jpg")
    assert split.take(split.labels == 1).names == ("3.jpg", "4.jpg")
    bank = toy_bank(classes=3, test=2)
    test = bank.splits["test"]
    named = cal.FeatureBank(**{**vars(bank), "splits": bank.splits | {"test": Split(test.features, test.labels, NAMES)}})
    loaded = cal.FeatureBank.load(named.save(tmp_path / "bank.safetensors"))
    assert loaded.splits["test"].names == NAMES and loaded.splits["val"].names == () and loaded.hash == bank.hash
    assert loaded.episode(1).test.names == NAMES
    bank.save(tmp_path / "plain.safetensors")
    assert b"pictures" not in (tmp_path / "plain.safetensors").read_bytes()  # a bank without names is what it was


# ── unequal classes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_all_shots_are_all_training_and_validation_images(toy_bank, expect_refused):
    bank = toy_bank(classes=3, train=[9, 1, 5], val=[2, 6, 1])
    episode = bank.episode("all")
    assert torch.bincount(episode.support.labels).tolist() == [9, 1, 5]
    assert torch.bincount(episode.val.labels).tolist() == [2, 6, 1]
    assert episode.shots == 5 and episode.shortfall == (0, 0, 0)
    with expect_refused("a whole number or 'all'"):
        bank.episode("many")
    with expect_refused("has 0 training images"):
        toy_bank(classes=3, train=[2, 0, 2]).episode("all")


def test_the_balanced_loss_weighs_classes_alike(toy_bank):
    support = toy_bank(classes=2, train=[9, 1]).splits["train"].to(torch.float32)
    logits = torch.randn(10, 2, generator=torch.Generator().manual_seed(1))
    found = cross_entropy(logits, support.labels, class_weights(support, 2))
    each = -logits.log_softmax(1).gather(1, support.labels[:, None]).squeeze(1)
    assert found.item() == pytest.approx(sum(each[support.labels == c].mean().item() for c in (0, 1)) / 2, rel=1e-5)
    equal = toy_bank().episode(4)
    plain, balanced = (cal.CLIPAdapter(alpha=0.3, steps=5, balanced=b).fit(equal) for b in (False, True))
    assert torch.allclose(plain.logits(equal.test.view()), balanced.logits(equal.test.view()), atol=1e-3)
    unequal = toy_bank(train=[8, 8, 1, 1, 1], noise=3.0).episode("all")
    plain, balanced = (cal.CLIPAdapter(alpha="auto", steps=5, balanced=b).fit(unequal) for b in (False, True))
    assert not torch.allclose(plain.logits(unequal.test.view()), balanced.logits(unequal.test.view()), atol=1e-3)
    assert balanced.method.label == "clip-adapter(balanced=True, steps=5)"


# ── fitting again ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [cal.CLIPAdapter(steps=5), cal.CLIPAdapter(alpha="val", grid=(0.2, 0.8), steps=3),
                                    cal.CLIPAdapter(alpha="learned", steps=5), cal.LinearProbe(bisections=1),
                                    cal.GDA(), cal.TipAdapter(), cal.CLAP(steps=3)])
def test_a_settled_method_chooses_nothing(toy_bank, method):
    episode = toy_bank(noise=2.0).episode(4)
    fitted = method.fit(episode)
    settled = method.settled(fitted)
    assert not settled.needs_validation
    again = settled.fit(episode.shots_only())
    if fitted.alpha is not None:
        assert again.alpha == pytest.approx(fitted.alpha, rel=1e-3)


def test_joined_splits_keep_views_and_order(toy_bank):
    bank = toy_bank(views=3)
    joined = Split.joined([bank.splits["train"], bank.splits["val"]])
    assert joined.features.shape == (3, 60, 16) and joined.labels.tolist()[40:] == bank.splits["val"].labels.tolist()
    assert torch.equal(joined.features[2, 40:], bank.splits["val"].features)
