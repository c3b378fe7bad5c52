"""A classifier put to work on whatever is handed over: counts, limits and tables by plain arithmetic, or one sentence."""
import csv
import math
from functools import cache

import numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_any_input import CLASSES, bank, cosine_logits, features, labels, result, zero_shot
from test_any_name import picture_classifier, tower

import clip_adapter_lite as cal

quick = settings(max_examples=60, deadline=None)
shares = st.sampled_from([0.1, 0.5, 0.9, numpy.float32(0.2), numpy.float64(0.7), torch.tensor(0.25), 0, 1, -0.1,
                          math.nan, "0.5", [0.5], True])
GOOD = (0.1, 0.5, 0.9, 0.2, 0.7, 0.25)


def number(share):
    return round(float(share), 6) if not isinstance(share, (str, list, bool)) else None


@given(features(12), labels(12))
@quick
def test_a_report_counts_what_a_loop_counts(x, y):
    split = result(cal.Split, x[0], y[0])
    found = split and result(cal.report, zero_shot(), split)
    right = x[1] is not None and y[1] is not None
    assert (found is not None) == right
    if right:
        named = cosine_logits(x[1], bank().text_features.numpy().astype(float), 20.0).argmax(1)
        wanted = numpy.zeros((CLASSES, CLASSES), int)
        for true, guess in zip(y[1], named):
            wanted[true, guess] += 1
        assert numpy.asarray(found.confusion).tolist() == wanted.tolist()
        assert {pair: len(names) for pair, names in found.pictures.items()} == {
            (a, b): wanted[a, b] for a in range(CLASSES) for b in range(CLASSES) if a != b and wanted[a, b]}


@given(features(12), labels(12), st.one_of(st.none(), shares), st.one_of(st.none(), shares),
       st.sampled_from(["temperature", "none", "sals", "magic", None]))
@quick
def test_calibration_gives_the_order_statistics_or_says_what_is_wrong(x, y, reject, cover, scaling):
    split = result(cal.Split, x[0], y[0])
    if split is None:
        return
    found = result(cal.calibrate, zero_shot(), split, scaling=scaling, false_reject=reject, coverage=cover,
                   zero_shot=zero_shot())
    sound = scaling in ("temperature", "none", "sals") and all(
        share is None or number(share) in GOOD for share in (reject, cover))
    asked = scaling == "temperature" or reject is not None or cover is not None
    right = x[1] is not None and y[1] is not None or not asked
    enough = reject is None or number(reject) not in GOOD or 12 >= math.ceil(1 / number(reject) - 1 - 1e-9)
    assert (found is not None) == (sound and right and enough)
    if found is None or not asked:
        return
    logits = cosine_logits(x[1], bank().text_features.numpy().astype(float), 20.0)
    if reject is not None:
        place = math.floor(number(reject) * 13 + 1e-9)
        numpy.testing.assert_allclose(found.calibration.threshold, sorted(logits.max(1))[place - 1], atol=2e-3)
    if cover is not None:
        sets = found.prediction_sets(torch.tensor(x[1])).numpy()
        # on the very images that calibrated, at least ⌈(N + 1) coverage⌉ of N sets hold the true class
        assert sets[range(12), y[1]].sum() >= min(12, math.ceil(13 * number(cover) - 1e-6))


@cache
def pictures(folder) -> None:
    chance = numpy.random.default_rng(1)
    for name in ("a.png", "ä b.jpg", "c,d.png", "deep/e.png", '"q".png'):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (20, 30, 3), dtype="uint8")).save(path)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")
    (folder / "empty").mkdir()


@given(st.sampled_from(["folder", "list", "one", "glob", "empty", "nothing", "broken alone"]),
       st.sampled_from(["out.csv", "new/ä out.jsonl", "out.txt", "taken.csv", "."]),
       st.sampled_from([1, 3, numpy.int64(2), 99, 0, "2", None]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_tables_of_pictures_are_what_predict_says_and_nothing_is_lost(tmp_path_factory, what, name, top, skip):
    folder = tmp_path_factory.getbasetemp() / "any-pictures"
    pictures(folder)
    given_files = {"folder": folder, "list": [folder / "a.png", str(folder / "c,d.png")], "one": folder / "ä b.jpg",
                   "glob": str(folder / "*.png"), "empty": folder / "empty", "nothing": folder / "nowhere.png",
                   "broken alone": folder / "broken.png"}[what]
    out = tmp_path_factory.mktemp("out") / name
    if name == "taken.csv":
        out.write_text("mine")
    found = result(cal.predict_files, picture_classifier(), tower(), given_files, out, top=top, skip_unreadable=skip,
                   progress=False)
    counted = top not in (0, "2", None)
    breaks = what in ("folder", "glob", "broken alone") and not skip
    right = what not in ("empty", "nothing") and name in ("out.csv", "new/ä out.jsonl") and counted and not breaks
    if what == "broken alone" and skip and name in ("out.csv", "new/ä out.jsonl") and counted:
        right = found is not None  # a table of none, or a sentence
    assert (found is not None) == right
    if name == "taken.csv":
        assert out.read_text() == "mine"
    if found is None or name != "out.csv" or what == "broken alone":
        return
    rows = list(csv.reader(out.open(encoding="utf-8-sig", newline="")))[1:]
    assert len(rows) == found[1] == {"folder": 5, "list": 2, "one": 1, "glob": 3}[what]
    for row in rows:
        wanted = cal.predict(picture_classifier(), tower(), row[0], top=1)[0][0]
        assert row[1] == wanted[0] and abs(float(row[2]) - wanted[1]) < 1e-3


@given(st.sampled_from([2, numpy.int64(1), "all", 0, -1, 1.5, "2", None, True, 99]), shares)
@settings(max_examples=40, deadline=None)
def test_an_open_set_is_measured_or_says_what_is_wrong(shots, reject):
    found = result(cal.open_set, bank(), cal.ZeroShot(device="cpu"), shots=shots, false_reject=reject)
    sound = shots in (2, 1, "all") and not isinstance(shots, (bool, float)) and number(reject) in GOOD
    assert found is None or sound
    if found:
        assert 0 <= found.auroc <= 1
        assert found.rejected == (found.unknown.double() < found.threshold).double().mean().item()


@given(st.sampled_from(["a.pt2", "new/ä b.pt2", "a.onnx", "a", ".", "taken.pt2"]))
@settings(max_examples=12, deadline=None)
def test_an_export_goes_where_it_was_sent_or_nowhere(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("export")
    out = folder / name
    if name == "taken.pt2":
        out.write_text("mine")
    found = result(cal.export_classifier, zero_shot(), out)
    assert (found is not None) == (name in ("a.pt2", "new/ä b.pt2"))
    if found is None:
        assert [path.name for path in folder.iterdir()] == (["taken.pt2"] if name == "taken.pt2" else [])
        assert name != "taken.pt2" or out.read_text() == "mine"
    else:
        x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        logits, shares = torch.export.load(out).module()(x)
        torch.testing.assert_close(logits.double(), zero_shot().logits(x).double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shares, logits.softmax(1))
