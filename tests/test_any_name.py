"""Class names, templates and mappings in any shape: the right columns, halves and words, or one sentence."""
from dataclasses import replace
from functools import cache

import numpy
import torch
from conftest import make_bank, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_any_input import bank, features, result, zero_shot

import clip_adapter_lite as cal
from clip_adapter_lite.encoding import encode

quick = settings(max_examples=60, deadline=None)
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)
RESPELLED = {"capitals": str.upper, "underscores": lambda n: n.replace(" ", "_"), "spaces": lambda n: f" {n}  ",
             "as it is": lambda n: n}


@cache
def tower():
    return replace(tiny_backbone(), preprocess=lambda picture: torch.from_numpy(
        numpy.asarray(picture.resize((32, 32)), "float32").copy()).permute(2, 0, 1) / 255)


@given(st.integers(1, 7), st.lists(words, min_size=7, max_size=7, unique=True), st.booleans())
@quick
def test_halves_hold_every_class_once(classes, names, uneven):
    whole = make_bank(classes=classes, train=[3 + (c % 2) * uneven for c in range(classes)],
                      classnames=tuple(names[:classes]))
    found = result(cal.base_and_new, whole)
    assert (found is None) == (classes == 1)
    if found is None:
        return
    base, new = found
    assert len(base.classnames) == (classes + 1) // 2 and base.classnames + new.classnames == whole.classnames
    for name, split in whole.splits.items():
        for half, first in ((base, 0), (new, len(base.classnames))):
            mine = [row for row, label in enumerate(split.labels.tolist()) if first <= label < first + len(half.classnames)]
            assert half.splits[name].labels.tolist() == [int(split.labels[row]) - first for row in mine]
            torch.testing.assert_close(half.splits[name].features, split.features[mine], rtol=0, atol=0)


@given(st.permutations(range(5)), st.integers(1, 5), st.sampled_from(list(RESPELLED.values())),
       st.sampled_from(["", "", "by name", "by column", "unknown", "missing column", "truth", "fraction", "twice", "words",
                        "list", "key", "both"]))
@quick
def test_a_classifier_answers_with_the_columns_of_the_names(order, kept, respell, how):
    order = order[:kept]
    theirs, first = tuple(respell(f"class {c}") for c in order), f"class {order[0]}"
    options = {}
    if how in ("by name", "by column", "unknown", "missing column", "truth", "fraction", "twice"):
        theirs = ("other", *theirs[1:])
        target = {"by name": first, "by column": order[0], "unknown": "class 9", "missing column": 5, "truth": True,
                  "fraction": 0.5, "twice": f"class {order[-1]}"}[how]
        options["mapping"] = {"other": target}
    if how in ("words", "list"):
        options["mapping"] = {"words": "class 1", "list": ["class 1"]}[how]
    if how == "key":
        options["mapping"] = {"no class of the bank": first}
    if how == "both":
        options = {"mapping": {theirs[0]: first}, "new_classes": True}
    other = make_bank(classes=kept, classnames=theirs, seed=4)
    found = result(cal.transfer, zero_shot(), other, **options)
    right = how in ("", "by name", "by column") or how == "twice" and kept == 1
    assert (found is not None) == right
    if right:
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(found.logits(x), zero_shot().logits(x)[:, order], rtol=0, atol=0)
        assert found.classnames == theirs


@given(st.lists(words, min_size=1, max_size=5), st.lists(words, min_size=1, max_size=3),
       st.sampled_from(["", "", "", "one word", "one template", "no names", "no templates", "numbers", "blank", "no place",
                        "two places", "a place of its own", "none", "a generator"]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_classifier_weights_are_the_mean_over_templates(names, starts, fault, each):
    templates = [start.replace("{", "(").replace("}", ")") + " {}." for start in starts]
    given_names, given_templates = {
        "one word": ("dog", templates), "one template": (names, templates[0]), "no names": ([], templates),
        "no templates": (names, []), "numbers": ([3] * len(names), templates), "blank": ([*names, " "], templates),
        "no place": (names, [*templates, "a photo."]), "two places": (names, ["a {} of {}."]),
        "a place of its own": (names, ["a {0} of."]), "none": (None, templates),
        "a generator": ((name for name in names), (template for template in templates))}.get(fault, (names, templates))
    blank = any(not name.replace("_", " ").strip() for name in names)
    found = result(cal.classifier_weights, tower(), given_names, given_templates, normalize_each=each)
    assert (found is not None) == (fault in ("", "a generator", "one template", "one word", "two places")
                                   and not (blank and fault != "one word"))
    if found is None:
        return
    names = ["dog"] if fault == "one word" else names
    templates = templates[:1] if fault == "one template" else given_templates if fault == "two places" else templates
    rows = []
    for name in names:
        texts = tower().encode_text([template.replace("{}", name.replace("_", " ")) for template in templates]).double()
        mean = (texts / texts.norm(dim=1, keepdim=True) if each else texts).mean(0)
        rows.append(mean / mean.norm())
    torch.testing.assert_close(found.double(), torch.stack(rows), rtol=0, atol=2e-5)


@cache
def picture_classifier():
    weights = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    return cal.inference.zero_shot(weights, ("a", "b", "c", "d"), tower())


KINDS = {"array": lambda x: x, "tensor": torch.from_numpy, "picture": Image.fromarray,
         "strided": lambda x: x[:, ::-1][:, ::-1],
         "read-only": lambda x: numpy.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
         "gray": lambda x: Image.fromarray(x[..., 0]), "palette": lambda x: Image.fromarray(x).convert("P")}


@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
       st.sampled_from([1, 2, numpy.int64(3), 9, 0, -1, 1.5, "2", None, True]),
       st.sampled_from(["", "", "", "alone", "tuple", "generator", "none", "no file", "number", "flat", "no picture"]))
@settings(max_examples=50, deadline=None)
def test_predictions_are_the_softmax_of_the_cosines(kinds, top, how):
    chance = numpy.random.default_rng(3)
    pictures = [KINDS[kind](chance.integers(0, 256, (high, wide, 3), dtype="uint8")) for kind, high, wide in kinds]
    given_pictures = {"alone": pictures[0], "tuple": tuple(pictures), "none": None, "no file": ["nowhere.jpg"],
                      "number": [3], "flat": [numpy.zeros(7)], "no picture": []}.get(how, pictures)
    if how == "generator":
        given_pictures = (picture for picture in pictures)
    found = result(cal.predict, picture_classifier(), tower(), given_pictures, top=top)
    counted = isinstance(top, (int, numpy.integer)) and not isinstance(top, bool) and top >= 1
    right = how in ("", "alone", "tuple", "generator", "no picture") and counted
    assert (found is not None) == right
    if not right:
        return
    shown = [] if how == "no picture" else pictures[:1] if how == "alone" else pictures
    assert len(found) == len(shown)
    for picture, row in zip(shown, found):
        f = encode(tower(), [picture]).double()
        w = picture_classifier().head.weights.double()
        scores = tower().logit_scale * (f / f.norm()) @ (w / w.norm(dim=1, keepdim=True)).T
        wanted = sorted(zip(scores.softmax(1)[0].tolist(), "abcd"), reverse=True)[:int(top)]
        numpy.testing.assert_allclose([share for _, share in row], [share for share, _ in wanted], atol=1e-4)
        assert row[0][0] == wanted[0][1] or abs(wanted[0][0] - dict(row)[wanted[0][1]]) < 1e-4


@given(features(9))
@quick
def test_columns_of_a_transfer_take_what_the_classifier_takes(x):
    reversed_bank = replace(bank(), dataset="other", classnames=bank().classnames[::-1],
                            text_features=bank().text_features.flip(0))
    there = result(cal.transfer(zero_shot(), reversed_bank).logits, x[0])
    here = result(zero_shot().logits, x[0])
    assert (there is None) == (here is None)
    if here is not None:
        torch.testing.assert_close(there, here.flip(1), rtol=0, atol=0, equal_nan=True)
