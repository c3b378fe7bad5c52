"""How images are split, capped and read."""
import gzip
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_adapter_lite.datasets import ImageDataset, fashion_mnist, split_by_hash
from clip_adapter_lite.datasets.base import folder_items
from clip_adapter_lite.datasets.fashion_mnist import CLASSES, EXCERPT, read_idx, write_idx
from clip_adapter_lite.splits import SPLITS

COOP = dict(train=0.5, val=0.2)
OWN = dict(train=0.4, val=0.1, at_least=16)
WHOLE = dict(train=0.75, val=0.25)  # for what has a test split already


def pictures(*sizes: int) -> list[tuple[str, int]]:
    """Items of classes of these sizes, dealt out in turns."""
    return [(f"{label}-{turn}.png", label) for turn in range(max(sizes, default=0)) for label, size in enumerate(sizes)
            if turn < size]


def sizes_of(splits: dict) -> tuple[int, ...]:
    return tuple(len(splits[name]) for name in SPLITS)


def dataset(classes: int = 3, **splits) -> ImageDataset:
    return ImageDataset(name="toy", classnames=tuple(f"class {c}" for c in range(classes)), templates=("a {}.",),
                        splits={"train": [], "val": [], "test": []} | splits, protocol="as given", source="here",
                        licence="MIT")


# ── splitting ─────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("fractions, size, expected", [
    (COOP, 100, (50, 20, 30)),
    (COOP, 10, (5, 2, 3)),
    (COOP, 7, (4, 1, 2)),  # round(3.5) = 4, then two fifths of the 3 left
    (COOP, 4, (2, 1, 1)),
    (COOP, 2, (1, 1, 0)),
    (OWN, 60, (24, 6, 30)),
    (OWN, 30, (16, 2, 12)),  # 0.4 would be 12; a sixth of the 14 left
    (OWN, 20, (15, 1, 4)),  # three quarters of 20 are fewer than 16
    (OWN, 7, (5, 1, 1)),
    (OWN, 4, (3, 1, 0)),
    (WHOLE, 64, (48, 16, 0)),
    (WHOLE, 7, (5, 2, 0)),
    (WHOLE, 2, (1, 1, 0)),  # round(1.5) = 2 would leave validation nothing
    (WHOLE | dict(at_least=12), 15, (11, 4, 0)),
    (WHOLE | dict(at_least=12), 100, (75, 25, 0)),
])
def test_a_class_is_divided_as_counted_by_hand(fractions, size, expected):
    assert sizes_of(split_by_hash(pictures(size), **fractions)) == expected


def test_coops_fractions_are_the_default():
    assert sizes_of(split_by_hash(pictures(50))) == (25, 10, 15)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.sampled_from([COOP, OWN, WHOLE]), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_every_image_is_in_one_split_and_every_class_in_train_and_validation(sizes, fractions, seed):
    items = pictures(*sizes)
    splits = split_by_hash(items, seed=seed, **fractions)
    assert tuple(splits) == SPLITS
    assert sorted(item for part in splits.values() for item in part) == sorted(items)  # complete and disjoint
    for name in ("train", "val"):
        assert {label for _, label in splits[name]} == set(range(len(sizes)))


@given(st.integers(1, 200), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_the_wish_for_training_images_leaves_a_quarter_and_never_takes_any_away(size, at_least):
    without = len(split_by_hash(pictures(size), 0.4, 0.1)["train"])
    splits = split_by_hash(pictures(size), 0.4, 0.1, at_least=at_least)
    assert len(splits["train"]) == max(without, min(at_least, size * 3 // 4))


def test_the_split_is_the_one_written_here():
    """SHA-256 of "0/0/i" puts seven images in the order 4 2 6 0 5 1 3; the items keep their own order."""
    items = pictures(7)
    splits = split_by_hash(items)
    assert {name: [items.index(item) for item in part] for name, part in splits.items()} == \
        {"train": [0, 2, 4, 6], "val": [5], "test": [1, 3]}


def test_classes_are_split_each_for_itself():
    alone, both = split_by_hash(pictures(9)), split_by_hash(pictures(9) + [("other", 1)] * 30)
    assert {n: [i for i in part if i[1] == 0] for n, part in both.items()} == alone


def test_the_split_is_the_same_again_and_another_for_another_seed():
    items = pictures(20, 20)
    assert split_by_hash(items, seed=3) == split_by_hash(items, seed=3) != split_by_hash(items, seed=4)


def test_nothing_splits_into_nothing():
    assert split_by_hash([]) == {"train": [], "val": [], "test": []}


# ── datasets and caps ─────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("split", SPLITS)
def test_a_label_without_a_class_is_refused(split, label, expect_refused):
    with expect_refused(f"toy, {split}: label {label} does not name one of the 3 classes"):
        dataset(**{split: [("a.png", 0), ("b.png", label)]})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_cap_on_train_or_val_counts_by_class_and_keeps_small_classes_and_the_order(split):
    items = pictures(30, 8, 3)
    kept = dataset(**{split: items}).cap(**{split: 8}).splits[split]
    assert Counter(label for _, label in kept) == {0: 8, 1: 8, 2: 3}
    assert kept == [item for item in items if item in kept]


def test_the_images_under_a_smaller_cap_are_among_those_under_a_larger():
    whole = dataset(train=pictures(30, 30, 30))
    assert set(whole.cap(train=4).splits["train"]) < set(whole.cap(train=8).splits["train"])


def test_the_capped_images_are_the_ones_written_here():
    """SHA-256 of "0/class/index" puts the even rows, of class 0, in the order 8 4 2 6 0, the odd ones in 1 3 7 5 9."""
    items = pictures(5, 5)
    capped = dataset(train=items, test=items).cap(train=3, test=5)
    assert [items.index(item) for item in capped.splits["train"]] == [1, 2, 3, 4, 7, 8]
    assert [items.index(item) for item in capped.splits["test"]] == [1, 3, 4, 7, 8]


def test_a_cap_on_test_is_for_all_together_and_keeps_the_shares():
    test = dataset(test=pictures(400, 200, 100)).cap(test=70).splits["test"]
    assert Counter(label for _, label in test) == {0: 40, 1: 20, 2: 10}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_capped_test_split_is_as_large_as_allowed_and_no_class_is_one_off_its_share(sizes, cap):
    test = dataset(len(sizes), test=pictures(*sizes)).cap(test=cap).splits["test"]
    allowed = min(cap, sum(sizes))
    assert len(test) == allowed
    counts = Counter(label for _, label in test)
    assert all(abs(counts[c] - size * allowed / sum(sizes)) < 1 for c, size in enumerate(sizes))


def test_the_protocol_says_what_was_capped_and_only_that():
    whole = dataset(train=pictures(9, 9), val=pictures(9), test=pictures(9))
    assert whole.cap(train=4, val=9, test=6).protocol == "as given; train ≤ 4 a class, test ≤ 6"
    assert whole.cap(train=9, val=9, test=9).protocol == "as given"


def test_a_cap_leaves_the_dataset_and_all_else_as_it_was():
    whole = dataset(train=pictures(9, 9))
    capped = whole.cap(train=4)
    assert whole.cap(val=1, test=1).splits["train"] == whole.splits["train"]
    assert dataset(test=pictures(9, 9)).cap(train=4).splits["test"] == pictures(9, 9)
    assert len(whole.splits["train"]) == 18
    for name in ("name", "classnames", "templates", "source", "licence"):
        assert getattr(capped, name) == getattr(whole, name)
    assert capped.splits["val"] == capped.splits["test"] == []


def test_folder_items_are_in_name_order_and_labelled_by_the_place_of_their_class(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/1.png", "unused/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert folder_items(tmp_path, ["b", "a"]) == \
        [(tmp_path / "b/10.png", 0), (tmp_path / "b/2.png", 0), (tmp_path / "a/1.png", 1)]


# ── IDX files and Fashion-MNIST ───────────────────────────────────────────────────────────────────────────────

def test_an_idx_file_made_by_hand_is_read(tmp_path):
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3])  # bytes in three dimensions: 2, 1, 3
    (tmp_path / "x.gz").write_bytes(gzip.compress(header + bytes([1, 2, 3, 253, 254, 255])))
    array = read_idx(tmp_path / "x.gz")
    assert array.dtype == np.uint8 and array.tolist() == [[[1, 2, 3]], [[253, 254, 255]]]


def test_sizes_over_255_are_big_endian(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 258) + bytes(258)))
    assert read_idx(tmp_path / "x.gz").shape == (258,)


@pytest.mark.parametrize("shape", [(7,), (300, 2, 5), (0,), (1, 28, 28)])
def test_what_is_written_as_idx_is_read_again(shape, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    write_idx(tmp_path / "x.gz", array)
    again = read_idx(tmp_path / "x.gz")
    assert again.dtype == np.uint8 and again.shape == shape and np.array_equal(again, array)


def test_an_idx_file_has_the_same_bytes_whatever_its_name_and_the_time(tmp_path, monkeypatch):
    array = np.arange(50, dtype=np.uint8)
    write_idx(tmp_path / "a.gz", array)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_idx(tmp_path / "b.gz", array)
    raw = (tmp_path / "a.gz").read_bytes()
    assert raw == (tmp_path / "b.gz").read_bytes()
    assert raw[3:8] == bytes(5)  # gzip's flags (no file name) and its time


@pytest.fixture
def tiny_fashion(tmp_path) -> Path:
    """Fashion-MNIST's four files with 80 training and 10 test pictures; a picture's grey value is its number."""
    for stem, many in (("train", 80), ("t10k", 10)):
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", (np.arange(many) % 10).astype(np.uint8))
        grey = np.arange(many, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", grey)
    return tmp_path


def test_fashion_mnist_keeps_each_picture_with_its_label_and_test_as_given(tiny_fashion):
    data = fashion_mnist(tiny_fashion)
    assert sizes_of(data.splits) == (60, 20, 10)
    for items in data.splits.values():
        for picture, label in items:
            assert (picture.mode, picture.size) == ("RGB", (28, 28))
            assert picture.getpixel((3, 5)) == (picture.getpixel((0, 0))[0],) * 3
            assert picture.getpixel((0, 0))[0] % 10 == label
    numbers = [picture.getpixel((0, 0))[0] for name in ("train", "val") for picture, _ in data.splits[name]]
    assert sorted(numbers) == list(range(80))
    assert [label for _, label in data.splits["test"]] == list(range(10))
    assert data.classnames == CLASSES and len(CLASSES) == 10 and data.licence == "MIT"


def test_the_bundled_excerpt_is_small_and_has_48_16_and_100_pictures_of_each_class():
    if not EXCERPT.exists():
        pytest.skip("the excerpt is not written yet")
    assert sum(path.stat().st_size for path in EXCERPT.iterdir()) <= 1e6
    for name, many in (("train", 48), ("val", 16), ("test", 100)):
        assert Counter(label for _, label in fashion_mnist().splits[name]) == dict.fromkeys(range(10), many)
