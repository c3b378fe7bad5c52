"""Classifiers on other banks: the same columns, the same adapters on other words, and one sentence for what cannot be."""
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import expect_refusal, make_bank

import clip_adapter_lite as cal
from clip_adapter_lite import FeatureBank, Split, base_and_new, transfer
from clip_adapter_lite.datasets.imagenet import class_ids
from clip_adapter_lite.transfer import shifted

BRANCHES = [dict(branch="visual", alpha=0.6), dict(branch="text", beta=0.3), dict(branch="both", alpha=0.4, beta=0.7)]
HEADS = [cal.ZeroShot(), cal.LinearProbe(C=1.0), cal.TipAdapter(alpha=2.0, beta=5.0),
         *(cal.CLIPAdapter(steps=20, **branch) for branch in BRANCHES)]


def label(method):
    return method.label


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def array(tensor):
    return tensor.detach().double().numpy()


def by_hand(classifier, features, weights=None):
    """The paper's equations in double precision, from the tensors of a fitted head; weights: in place of its own W."""
    state = {name: array(tensor) for name, tensor in classifier.head.state_dict().items()}
    f, w = array(features), None if weights is None else array(weights)
    if isinstance(classifier.method, cal.LinearProbe):
        return f @ state["weight"] + state["bias"]
    w = state["weights"] if w is None else w
    adapt = lambda x, which: np.maximum(x @ state[f"{which}.down.weight"].T, 0) @ state[f"{which}.up.weight"].T
    if "visual.up.weight" in state:
        f = classifier.alpha * adapt(f, "visual") + (1 - classifier.alpha) * f
    if "text.up.weight" in state:
        w = classifier.beta * adapt(w, "text") + (1 - classifier.beta) * w
    logits = classifier.head.logit_scale * unit(f) @ unit(w).T
    if isinstance(classifier.method, cal.TipAdapter):
        votes = np.exp(-classifier.beta * (1 - unit(f) @ state["keys"].T)) @ np.eye(len(w))[state["labels"].astype(int)]
        logits += classifier.alpha * votes
    return logits


def part_of(bank, classes, names=None):
    """A bank over `classes` (indices into the bank's) in that order, perhaps renamed."""
    classes = list(classes)
    splits = {}
    for name, split in bank.splits.items():
        rows = torch.tensor([i for i, c in enumerate(split.labels.tolist()) if c in classes], dtype=torch.long)
        labels = torch.tensor([classes.index(split.labels[i]) for i in rows], dtype=torch.long)
        splits[name] = Split(split.features[..., rows, :], labels)
    return replace(bank, dataset="part", classnames=tuple(names or (bank.classnames[c] for c in classes)),
                   text_features=bank.text_features[classes], splits=splits)


# ── the same classes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pacs():
    return {domain: FeatureBank.load(f"pacs-{domain}") for domain in ("photo", "art", "sketch")}


@pytest.mark.parametrize("method", HEADS, ids=label)
def test_a_classifier_of_photos_judges_sketches_by_its_own_equations(pacs, method, monkeypatch):
    fitted = method.fit(pacs["photo"].episode(4, 1))
    monkeypatch.setattr(cal.Method, "fit", lambda *_: pytest.fail("something was fitted again"))
    test = pacs["sketch"].splits["test"]
    expected = by_hand(fitted, test.features.float())
    judged = transfer(fitted, pacs["sketch"])
    np.testing.assert_allclose(array(judged.logits(test.features)), expected, rtol=1e-4, atol=1e-4)
    assert judged.accuracy(test) == pytest.approx((expected.argmax(1) == test.labels.numpy()).mean(), abs=1 / len(test))
    assert judged.classnames == pacs["sketch"].classnames
    assert (judged.origin["dataset"], judged.origin["transferred_to"]) == ("pacs-photo", "pacs-sketch")
    assert (judged.alpha, judged.val_accuracy, judged.method) == (fitted.alpha, fitted.val_accuracy, fitted.method)


def test_over_the_same_classes_it_can_be_saved_and_asked_for_its_ratios(pacs, tmp_path):
    judged = transfer(cal.CLIPAdapter(alpha="learned", steps=5).fit(pacs["photo"].episode(1, 1)), pacs["art"])
    features = pacs["art"].splits["test"].features[:20]
    again = cal.load_classifier(cal.save_classifier(judged, tmp_path / "judged.safetensors"))
    assert torch.equal(again.logits(features), judged.logits(features))
    assert judged.alphas(features).shape == (20,) and again.origin["transferred_to"] == "pacs-art"


@pytest.mark.parametrize("method", HEADS, ids=label)
def test_some_classes_in_another_order_are_those_columns(method):
    bank = make_bank(classes=6, classnames=("great white shark", "Tench", "hen", "night_snake", "goose", "koala"))
    target = part_of(bank, [3, 1, 4], ["Night snake", "tench", "GOOSE"])
    fitted = method.fit(bank.episode(4, 1))
    judged, features = transfer(fitted, target), bank.splits["test"].features
    assert torch.equal(judged.logits(features), fitted.logits(features)[:, [3, 1, 4]])
    assert judged.classnames == ("Night snake", "tench", "GOOSE")
    assert torch.allclose(judged.probabilities(features).sum(1), torch.ones(len(features)))
    test = target.splits["test"]
    right = [[3, 1, 4][row] for row in fitted.logits(test.features)[:, [3, 1, 4]].argmax(1)]
    truth = [[3, 1, 4][row] for row in test.labels]
    assert judged.accuracy(test) == sum(a == b for a, b in zip(right, truth)) / len(test)


def test_a_mapping_names_the_classifiers_class_or_its_column():
    bank = make_bank(classes=4, classnames=("crane", "missile", "missile", "wolf"))
    target = part_of(bank, [3, 2, 0], ["grey wolf", "rocket", "Crane"])
    fitted = cal.ZeroShot().fit(bank.episode(1, 1))
    judged = transfer(fitted, target, mapping={"Grey_Wolf": "WOLF", "rocket": 2})
    features = bank.splits["test"].features
    assert torch.equal(judged.logits(features), fitted.logits(features)[:, [3, 2, 0]])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_match_whichever_way_their_accents_are_written(form):
    bank = make_bank(classes=3, classnames=[unicodedata.normalize(form, name) for name in ("caf\u00e9", "\u00c5re", "tea")])
    other = "NFD" if form == "NFC" else "NFC"
    names = [unicodedata.normalize(other, name) for name in ("\u00e5re", "th\u00e9", "Caf\u00e9")]
    fitted, features = cal.ZeroShot().fit(bank.episode(1, 1)), bank.splits["test"].features
    judged = transfer(fitted, part_of(bank, [1, 2, 0], names), mapping={unicodedata.normalize(form, "th\u00e9"): "tea"})
    assert torch.equal(judged.logits(features), fitted.logits(features)[:, [1, 2, 0]])


def test_a_name_that_two_classes_have_is_matched_in_order_or_asked_for():
    bank = make_bank(classes=3, classnames=("missile", "wolf", "Missile"))
    fitted = cal.ZeroShot().fit(bank.episode(1, 1))
    features = bank.splits["test"].features
    assert torch.equal(transfer(fitted, bank).logits(features), fitted.logits(features))
    both = part_of(bank, [1, 0, 2])
    assert torch.equal(transfer(fitted, both).logits(features), fitted.logits(features)[:, [1, 0, 2]])
    with expect_refusal("'missile' is the name of columns 0, 2 of this classifier; say which with mapping={'missile': 0}",
                        ValueError):
        transfer(fitted, part_of(bank, [1, 0]))


def test_imagenet_goes_to_the_classes_of_its_variants():
    """ImageNet-R has the missile n03773504 and not the other class by that name; ImageNet-A has neither."""
    ids, names = class_ids()
    imagenet = make_bank(classes=1000, classnames=names, train=1, val=1, test=1)
    fitted, features = cal.ZeroShot().fit(imagenet.episode(1, 1)), imagenet.splits["test"].features[:50]
    columns = [ids.index(wnid) for wnid in ("n01443537", "n03710193", "n03773504", "n03775071", "n12267677")]
    renditions = part_of(imagenet, columns)
    judged = transfer(fitted, renditions, mapping={"missile": 657})
    assert torch.equal(judged.logits(features), fitted.logits(features)[:, columns])
    with expect_refusal("'missile' is the name of columns 657, 744 of this classifier; say which with mapping=", ValueError):
        transfer(fitted, renditions)
    adversarial = [ids.index(wnid) for wnid in ("n01498041", "n04355338", "n12267677")]
    assert torch.equal(transfer(fitted, part_of(imagenet, adversarial)).logits(features),
                       fitted.logits(features)[:, adversarial])
    assert torch.equal(transfer(fitted, imagenet).logits(features), fitted.logits(features))


@pytest.mark.parametrize("names, mapping, said", [
    (["class 0", "zebra"], None, "part's class 'zebra' is not one that this classifier knows (class 0, class 1, class 2, "
     "class 3, class 4 and 1 more); give mapping={'zebra': its name or column in the classifier}, or new_classes=True"),
    (["class 0", "zebra"], {"zebra": "horse"}, "class 'zebra' ('horse' in mapping) is not one"),
    (["class 0", "zebra"], {"zebra": 6}, "class 'zebra' ('6' in mapping) is not one"),
    (["class 0", "zebra"], {"zebra": -1}, "class 'zebra' ('-1' in mapping) is not one"),
    (["class 0", "class 1"], {"lion": "class 2"}, "mapping names 'lion', which is not a class of part"),
    (["class 0", "zebra"], {"zebra": "class 0"}, "Classes 0 and 1 of part ('class 0' and 'zebra') are both 'class 0'"),
    (["class 0", "Class_0"], None, "Classes 0 and 1 of part ('class 0' and 'Class_0') are both 'class 0'")])
def test_classes_that_cannot_be_matched_are_named(names, mapping, said):
    bank = make_bank(classes=6)
    fitted = cal.ZeroShot().fit(bank.episode(1, 1))
    with expect_refusal(said, ValueError):
        transfer(fitted, part_of(bank, [0, 1], names), mapping=mapping)


@pytest.mark.parametrize("change, said", [
    (dict(backbone="other"), "backbone 'none' but toy has 'other'"),
    (dict(meta={"weights_tag": "b", "preprocessing": {"size": 1}}), "weights tag 'a' but toy has 'b'"),
    (dict(meta={"weights_tag": "a", "preprocessing": {"size": 2}}), "preprocessing {'size': 1} but toy has {'size': 2}"),
    (dict(width=8), "feature width 16 but toy has 8")], ids=["backbone", "weights", "preprocessing", "width"])
@pytest.mark.parametrize("new_classes", [False, True])
def test_features_of_another_kind_are_refused(change, said, new_classes):
    meta = {"weights_tag": "a", "preprocessing": {"size": 1}}
    fitted = cal.ZeroShot().fit(make_bank(meta=meta).episode(1, 1))
    with expect_refusal(said, ValueError):
        transfer(fitted, make_bank(**{"meta": meta, **change}), new_classes=new_classes)


def test_what_is_not_recorded_is_not_refused():
    bank = make_bank(meta={"weights_tag": "a", "preprocessing": {"size": 1}})
    fitted = cal.ZeroShot().fit(bank.episode(1, 1))
    assert transfer(fitted, make_bank()).accuracy(bank.splits["test"]) == fitted.accuracy(bank.splits["test"])


def test_a_classifier_over_some_classes_is_not_saved(tmp_path):
    bank = make_bank()
    judged = transfer(cal.ZeroShot().fit(bank.episode(1, 1)), part_of(bank, [0, 1]))
    with expect_refusal("save the fitted one", ValueError):
        cal.save_classifier(judged, tmp_path / "c.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


# ── new classes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("classes, base", [(2, 1), (5, 3), (6, 3)])
def test_base_is_the_first_half_rounded_up_and_new_the_rest(classes, base):
    bank = make_bank(classes=classes, train=[c + 2 for c in range(classes)], views=2, meta={"protocol": "own"})
    halves = base_and_new(bank)
    assert [len(half.classnames) for half in halves] == [base, classes - base]
    assert halves[0].classnames + halves[1].classnames == bank.classnames
    assert [half.dataset for half in halves] == ["toy-base", "toy-new"]
    assert halves[1].meta["protocol"] == f"own; new: classes {base + 1} to {classes} of {classes}"
    for first, half in zip((0, base), halves):
        assert torch.equal(half.text_features, bank.text_features[first:first + len(half.classnames)])
        for name, split in bank.splits.items():
            mine = [i for i, c in enumerate(split.labels.tolist()) if first <= c < first + len(half.classnames)]
            assert half.splits[name].labels.tolist() == [int(split.labels[i]) - first for i in mine]
            assert torch.equal(half.splits[name].features, split.features[..., mine, :])


def test_one_class_cannot_be_halved():
    with expect_refusal("toy has 1 class, which cannot be halved"):
        base_and_new(make_bank(classes=1))


@pytest.mark.parametrize("method", [
    cal.ZeroShot(), cal.CLIPAdapter(alpha=0, steps=9), cal.CLIPAdapter(branch="text", beta=0, steps=9),
    cal.CLIPAdapter(branch="both", alpha=0, beta=0, steps=9)], ids=label)
def test_without_adaptation_new_classes_are_zero_shot_to_the_last_bit(method):
    base, new = base_and_new(FeatureBank.load("grocery"))
    judged = transfer(method.fit(base.episode(2, 1)), new, new_classes=True)
    zero = cal.ZeroShot().fit(new.episode(2, 1))
    test = new.splits["test"]
    assert torch.equal(judged.logits(test.features), zero.logits(test.features))
    assert judged.accuracy(test) == zero.accuracy(test) and judged.classnames == new.classnames


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch["branch"])
def test_the_adapters_of_base_classes_meet_the_words_of_new_ones(branch):
    base, new = base_and_new(FeatureBank.load("grocery"))
    fitted = cal.CLIPAdapter(steps=20, **branch).fit(base.episode(4, 1))
    test, before = new.splits["test"], fitted.logits(base.splits["test"].features)
    judged = transfer(fitted, new, new_classes=True)
    expected = by_hand(fitted, test.features.float(), new.text_features.float())
    np.testing.assert_allclose(array(judged.logits(test.features)), expected, rtol=1e-4, atol=1e-4)
    zero = cal.ZeroShot().fit(new.episode(1, 1)).logits(test.features)
    assert (judged.logits(test.features) - zero).abs().max() > 0.1  # the adapters do something
    assert torch.equal(fitted.logits(base.splits["test"].features), before)  # the fitted one is as it was


def test_learned_ratios_are_asked_with_the_new_words():
    base, new = base_and_new(make_bank(classes=6))
    fitted = cal.CLIPAdapter(alpha="learned", steps=30, rate=1e-2).fit(base.episode(4, 1))
    judged, features = transfer(fitted, new, new_classes=True), new.splits["test"].features.float()
    q = {name: array(tensor) for name, tensor in fitted.head.ratios.state_dict().items()}
    mean = unit(array(new.text_features).mean(0, keepdims=True)).repeat(len(features), 0)
    pair = np.concatenate([unit(array(features)), mean], 1) * 4  # √16
    hidden = np.maximum(pair @ q["first.weight"].T + q["first.bias"], 0)
    alpha = 1 / (1 + np.exp(-(hidden @ q["last.weight"].T + q["last.bias"])[:, 0]))
    np.testing.assert_allclose(array(judged.alphas(features)), alpha, rtol=1e-4)
    assert not np.allclose(array(fitted.alphas(features)), alpha, rtol=1e-4)


def test_new_classes_after_a_choice_of_columns_have_the_whole_head():
    base, new = base_and_new(make_bank(classes=8))
    fitted = cal.CLIPAdapter(alpha=0.5, steps=5).fit(base.episode(2, 1))
    features = new.splits["test"].features
    twice = transfer(transfer(fitted, part_of(base, [2, 0])), new, new_classes=True)
    assert torch.equal(twice.logits(features), transfer(fitted, new, new_classes=True).logits(features))


def test_a_prompt_ensemble_is_made_of_the_new_names():
    base, new = base_and_new(FeatureBank.load("rsscn7"))
    templates = ("a photo of {}.", "{} from above.")
    judged = transfer(cal.ZeroShot(templates=templates).fit(base.episode(1, 1)), new, new_classes=True)
    pocket = cal.load_backbone("pocket", device="cpu")
    expected = by_hand(judged, new.splits["test"].features.float(),
                       cal.classifier_weights(pocket, new.classnames, templates))
    np.testing.assert_allclose(array(judged.logits(new.splits["test"].features)), expected, rtol=1e-4, atol=1e-4)


def test_coops_context_goes_before_the_new_names():
    base, new = base_and_new(FeatureBank.load("rsscn7"))
    start = cal.CoOp(words="a photo of a", steps=0).fit(base.episode(1, 1))  # an untrained context is a hand-written one
    judged, features = transfer(start, new, new_classes=True), new.splits["test"].features
    pocket = cal.load_backbone("pocket", device="cpu")
    expected = by_hand(judged, features.float(), cal.classifier_weights(pocket, new.classnames, ("a photo of a {}.",)))
    np.testing.assert_allclose(array(judged.logits(features)), expected, rtol=1e-3, atol=1e-3)
    learned = cal.CoOp(steps=3).fit(base.episode(1, 1))
    state = torch.get_rng_state()
    moved = transfer(learned, new, new_classes=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(moved.head.context, learned.head.context) and moved.head.weights.shape == new.text_features.shape
    assert (moved.logits(features) - judged.logits(features)).abs().max() > 0.01


@pytest.mark.parametrize("method", [cal.LinearProbe(C=1.0), cal.TipAdapter(alpha=1.0, beta=1.0)], ids=label)
def test_methods_that_know_classes_from_images_refuse_new_ones(method):
    base, new = base_and_new(make_bank())
    with expect_refusal(f"{method.label} knows only the classes it was fitted on, so not those of toy-new", ValueError):
        transfer(method.fit(base.episode(2, 1)), new, new_classes=True)


def test_a_context_of_each_class_refuses_new_ones():
    base, new = base_and_new(FeatureBank.load("pacs-photo"))
    fitted = cal.CoOp(class_specific=True, steps=0).fit(base.episode(1, 1))
    with expect_refusal("coop(class_specific=True, steps=0) knows only the classes it was fitted on", ValueError):
        transfer(fitted, new, new_classes=True)


def test_a_mapping_and_new_classes_exclude_each_other():
    bank = make_bank()
    with expect_refusal("give one of them", ValueError):
        transfer(cal.ZeroShot().fit(bank.episode(1, 1)), bank, mapping={"class 0": 1}, new_classes=True)


# ── a bank under a shift ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_shifted_bank_gives_in_a_study_what_transfer_gives(pacs):
    target = part_of(pacs["sketch"], [6, 2, 0, 1, 5, 4, 3])
    bank = shifted(pacs["photo"], target)
    method = cal.CLIPAdapter(alpha=0.5, steps=10)
    table = cal.compare([bank], [method], shots=[2], seeds=[1, 2])
    expected = [transfer(method.fit(pacs["photo"].episode(2, seed)), target).accuracy(target.splits["test"])
                for seed in (1, 2)]
    assert table.accuracy.tolist() == expected and bank.dataset == "pacs-photo-to-part"
    assert "test images of part" in bank.meta["protocol"]


def test_a_shift_needs_the_same_classes_and_features(pacs):
    with expect_refusal("part has 2 of the 7 classes of pacs-photo", ValueError):
        shifted(pacs["photo"], part_of(pacs["sketch"], [0, 1]))
    with expect_refusal("class 'class 0' is not one", ValueError):
        shifted(pacs["photo"], make_bank(width=512, backbone="pocket"))
    with expect_refusal("backbone 'pocket' but toy has 'none'", ValueError):
        shifted(pacs["photo"], make_bank())
