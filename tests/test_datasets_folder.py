"""Your own folder of pictures."""
import json
import unicodedata
from collections import Counter

import pytest

from clip_adapter_lite.datasets import load_dataset
from clip_adapter_lite.splits import SPLITS


def touch(root, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def fill(root, folder: str, many: int, suffix: str = ".jpg") -> None:
    touch(root, *(f"{folder}/{n:03}{suffix}" for n in range(many)))


def sizes(data) -> tuple:
    return tuple(len(data.splits[part]) for part in SPLITS)


@pytest.fixture
def root(tmp_path):
    """Ten pictures of each of two classes, in folders of their names."""
    fill(tmp_path / "my pets", "grey_cat", 10, ".JPG")
    fill(tmp_path / "my pets", "dog", 10, ".webp")
    return tmp_path / "my pets"


@pytest.fixture
def parted(tmp_path):
    """The same in a train folder."""
    fill(tmp_path / "pets", "train/grey_cat", 10)
    fill(tmp_path / "pets", "train/dog", 10)
    return tmp_path / "pets"


def test_folders_of_classes_are_split_by_coops_rule_and_named_after_the_folder(root):
    data = load_dataset("folder", root)
    assert (data.name, data.classnames, sizes(data)) == ("my pets", ("dog", "grey cat"), (10, 4, 6))
    assert all(path.parent.name == ("dog", "grey_cat")[label] for part in SPLITS for path, label in data.splits[part])
    assert data.protocol == "one folder a class, split 50/20/30, by hash, seed 1"
    assert load_dataset("folder", root, seed=2).splits != data.splits == load_dataset("folder", root).splits


def test_hidden_files_other_files_and_loose_pictures_are_not_part_of_it(root):
    touch(root, "dog/.hidden.jpg", "dog/notes.txt", ".git/x.jpg", "cover.jpg", "dog/Thumbs.db")
    assert sizes(load_dataset("folder", root)) == (10, 4, 6)


def test_pictures_in_subfolders_belong_to_their_class(root):
    fill(root, "dog/holidays/2024", 10)
    data = load_dataset("folder", root)
    assert Counter(label for part in SPLITS for _, label in data.splits[part]) == {0: 20, 1: 10}


def test_a_class_called_train_is_a_class(tmp_path):
    for name in ("bus", "train", "test"):
        fill(tmp_path, name, 5)
    assert load_dataset("folder", tmp_path).classnames == ("bus", "test", "train")


@pytest.mark.parametrize("others, expected, protocol", [
    ((), (10, 4, 6), "own train folder, split 50/20/30, by hash, seed 1"),
    (("test",), (16, 4, 6), "own train and test folders, a fifth of train for validation, by hash, seed 1"),
    (("val",), (16, 4, 6), "own train and val folders, val as test, a fifth of train for validation, by hash, seed 1"),
    (("val", "test"), (20, 6, 6), "own train, val and test folders"),
])
def test_what_is_not_given_comes_from_train(others, expected, protocol, parted):
    for part in others:
        fill(parted, f"{part}/dog", 2)
        fill(parted, f"{part}/grey_cat", 4)
    data = load_dataset("folder", parted)
    assert (sizes(data), data.protocol, data.classnames) == (expected, protocol, ("dog", "grey cat"))
    assert {path.relative_to(parted).parts[0] for path, _ in data.splits["test"]} == {others[-1] if others else "train"}
    assert {path.relative_to(parted).parts[0] for path, _ in data.splits["train"]} == {"train"}
    chosen = [path for part in SPLITS for path, _ in data.splits[part]]
    assert len(chosen) == len(set(chosen)) == sum(expected)


def test_a_class_may_be_without_test_pictures_but_not_without_training_pictures(parted, expect_refused):
    fill(parted, "test/dog", 3)
    assert {label for _, label in load_dataset("folder", parted).splits["test"]} == {0}
    fill(parted, "test/newt", 3)
    with expect_refused("has pictures of 'newt', which train has none of"):
        load_dataset("folder", parted)


def test_names_come_from_classes_json(root):
    (root / "classes.json").write_text(json.dumps({"grey_cat": "a cat, grey"}), encoding="utf-8")
    assert load_dataset("folder", root).classnames == ("dog", "a cat, grey")


@pytest.mark.parametrize("text, said", [
    ('{"cat": "cat"}', "names 'cat', which is no class folder with pictures; the folders are 'dog', 'grey_cat'"),
    ('{"dog": 3}', 'must hold {"folder": "class name", …}'), ('{"dog": " "}', "must hold"), ('["dog"]', "must hold"),
    ("dog", "is not JSON"), ('{"dog": "grey cat"}', "two classes are called 'grey cat'"),
])
def test_a_wrong_classes_json_is_refused(text, said, root, expect_refused):
    (root / "classes.json").write_text(text, encoding="utf-8")
    with expect_refused(said):
        load_dataset("folder", root)


def test_classes_json_is_for_the_classes_of_train_too(parted):
    (parted / "classes.json").write_text('{"dog": "hound"}', encoding="utf-8")
    assert load_dataset("folder", parted).classnames == ("hound", "grey cat")


def test_a_folder_without_pictures_is_refused(tmp_path, expect_refused):
    touch(tmp_path, "loose.jpg")
    with expect_refused("has no pictures in class folders; put pictures in ROOT/<class>/, or in ROOT/train/<class>/"):
        load_dataset("folder", tmp_path)
    touch(tmp_path, "dog/a.heic")
    with expect_refused("has no pictures in class folders"):
        load_dataset("folder", tmp_path)


def test_a_class_without_pictures_is_refused_or_left_out(root, expect_refused):
    touch(root, "newt/a.heic")
    with expect_refused("has no pictures of 'newt'; add some (.jpg, .jpeg, "):
        load_dataset("folder", root)
    data = load_dataset("folder", root, allow_missing=True)
    assert data.classnames == ("dog", "grey cat")
    assert "; 1 folder without pictures left out; 1 .heic left out" in data.protocol


def test_one_class_is_refused(tmp_path, expect_refused):
    fill(tmp_path, "dog", 9)
    with expect_refused("has pictures of one class only, 'dog'"):
        load_dataset("folder", tmp_path)


def test_too_few_pictures_to_split_are_refused_with_the_class(root, expect_refused):
    fill(root, "newt", 3)
    with expect_refused("Class 'newt' has 3 pictures, and at least 4 are needed"):
        load_dataset("folder", root)
    fill(root, "newt", 4)
    data = load_dataset("folder", root)
    assert all(2 in {label for _, label in data.splits[part]} for part in SPLITS)


def test_folders_beside_train_that_would_be_overlooked_are_refused(parted, expect_refused):
    touch(parted, "documents/readme.txt")  # no pictures, no harm
    assert sizes(load_dataset("folder", parted)) == (10, 4, 6)
    fill(parted, "more/dog", 3)
    with expect_refused("holds pictures in 'more' beside train; only train, val and test are read"):
        load_dataset("folder", parted)


def test_test_without_train_is_refused(tmp_path, expect_refused):
    fill(tmp_path, "test/dog", 3)
    with expect_refused("has a folder test with classes but no folder train"):
        load_dataset("folder", tmp_path)


def test_a_test_folder_of_empty_classes_is_refused(parted, expect_refused):
    (parted / "test/dog").mkdir(parents=True)
    with expect_refused("has class folders but no pictures"):
        load_dataset("folder", parted)


@pytest.mark.parametrize("train, val, test", [
    ("Training", None, "Testing"), ("Train", "Valid", "Test"), ("training_set", None, "test_set"),
    ("seg_train/seg_train", None, "seg_test/seg_test"), ("TRAIN", "validation", "TEST"),
    ("Train Set", "val-set", "testset"), ("train_images", None, "test_images"), ("TrainingData", None, "TestData"),
    ("train1", "eval", "tests"), ("dataset/train", "dataset/dev", "dataset/test"), ("train/images", None, "test/images"),
    ("a/b/train/train", None, "a/b/test/test")])
def test_parts_go_by_the_names_that_others_give_them(tmp_path, train, val, test):
    for part, many in ((train, 5), (val, 3), (test, 2)):
        for kind in ("cat", "dog"):
            if part:
                fill(tmp_path / "pets", f"{part}/{kind}", many)
    data = load_dataset("folder", tmp_path / "pets")
    assert data.classnames == ("cat", "dog")
    assert sizes(data) == ((10, 6, 4) if val else (8, 2, 4))


@pytest.mark.parametrize("folders, said", [
    (("cat/train", "cat/test", "dog/train", "dog/test"), "has 'test', 'train' inside of 'cat', which would be read as one"),
    (("my_train/cat", "my_train/dog", "x/cat", "x/dog"), "has the folders 'cat', 'dog' in each of 'my_train', 'x', which "
     "look like parts and not like classes; call them train, val and test"),
    (("seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_pred/seg_pred"), "in 'seg_pred' beside train"),
    (("Training/cat", "Training/dog", "test"), "holds pictures in 'test' beside train"),
    (("Training/cat", "Training/dog", "Testing/cat", "test"), "holds pictures in 'test' beside train")])
def test_layouts_that_would_be_read_wrongly_are_refused(folders, said, tmp_path, expect_refused):
    for folder in folders:
        fill(tmp_path, folder, 5)
    with expect_refused(said):
        load_dataset("folder", tmp_path)


def test_an_archives_own_folder_is_gone_into_and_a_systems_folders_are_not_there(tmp_path):
    for kind in ("cat", "dog"):
        fill(tmp_path / "pets", f"archive/animals/{kind}", 10)
        fill(tmp_path / "pets", f"archive/animals/{kind}/@eaDir", 3)
    touch(tmp_path / "pets", "__MACOSX/archive/._x.jpg", "archive/animals/__MACOSX/cat/._x.jpg")
    (tmp_path / "pets/archive/animals/classes.json").write_text('{"cat": "tom"}', encoding="utf-8")
    data = load_dataset("folder", tmp_path / "pets")
    assert (data.name, data.classnames, sizes(data)) == ("pets", ("tom", "dog"), (10, 4, 6))
    (tmp_path / "pets/archive/animals/classes.json").rename(tmp_path / "pets/classes.json")
    assert load_dataset("folder", tmp_path / "pets").classnames == ("tom", "dog")


def test_subfolders_that_classes_share_are_their_own(tmp_path):
    for folder in ("cat/2023", "cat/2024", "dog/2023", "dog/2024"):
        fill(tmp_path, folder, 5)
    assert load_dataset("folder", tmp_path).classnames == ("cat", "dog")


def test_accents_of_one_form_in_train_and_of_the_other_in_test_are_one_class(tmp_path, expect_refused):
    typed, zipped = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    for folder in (f"train/{typed}", "train/tea", f"test/{zipped}"):
        fill(tmp_path, folder, 5)
    data = load_dataset("folder", tmp_path)
    assert data.classnames == (typed, "tea") and [label for _, label in data.splits["test"]] == [0] * 5
    fill(tmp_path, f"test/{typed}", 1)
    with expect_refused("which train has none of"):
        load_dataset("folder", tmp_path)


def test_two_folders_for_one_part_are_refused(parted, expect_refused):
    fill(parted, "Training/dog", 3)
    with expect_refused("two folders for train"):
        load_dataset("folder", parted)


def test_pictures_of_formats_that_are_not_read_are_counted(root):
    fill(root, "dog", 3, ".HEIC")
    fill(root, "grey_cat", 2, ".avif")
    fill(root, "dog", 11, ".jfif")
    data = load_dataset("folder", root)
    assert data.protocol.endswith("; 3 .heic, 2 .avif left out, which are not read: convert them to JPEG or PNG")
    assert sum(sizes(data)) == 31


def test_whatever_is_left_out_is_counted_and_notes_are_not(root):
    said = load_dataset("folder", root).protocol
    touch(root, "dog/a.txt", "dog/Thumbs.db", "dog/.b.heic", "cover.xml", "__MACOSX/dog/c.heic")
    assert load_dataset("folder", root).protocol == said
    touch(root, "dog/scan", "dog/a.DCM", "dog/b.dcm", "grey_cat/deep/a.dng", "dog/a.tga", "dog/a.exr", "dog/a.mov", "a.jpg")
    assert load_dataset("folder", root).protocol == (
        f"{said}; 1 picture outside of class folders left out; 2 .dcm, 1 .exr, 1 .mov, 1 .tga, 1 without a suffix, "
        "1 more kind left out, which are not read: convert them to JPEG or PNG")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".MPO", ".pgm"])
def test_other_names_of_formats_that_are_read_are_read(root, suffix):
    fill(root, "dog", 10, suffix)
    data = load_dataset("folder", root)
    assert sum(sizes(data)) == 30 and "left out" not in data.protocol


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_names_are_read_in_every_utf_and_with_accents_of_either_form(root, encoding):
    (root / "dog").rename(root / unicodedata.normalize("NFD", "chi\u00ebn"))
    (root / "classes.json").write_text(json.dumps({"chi\u00ebn": "a \u00fc dog"}, ensure_ascii=False), encoding=encoding)
    assert load_dataset("folder", root).classnames == ("a \u00fc dog", "grey cat")


@pytest.mark.parametrize("encoding", ["cp1252", "mac-roman"])
def test_class_names_in_an_old_code_page_are_refused(root, encoding, expect_refused):
    (root / "classes.json").write_text('{"dog": "chi\u00ebn"}', encoding=encoding)
    with expect_refused("classes.json is text of an old Windows or Mac code page"):
        load_dataset("folder", root)


def test_own_pictures_are_read_as_viewers_show_them(root):
    assert not load_dataset("folder", root).plain
