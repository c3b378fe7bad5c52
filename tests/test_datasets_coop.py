"""CoOp's split files: real ones where they are at hand, small ones always; and the table of all datasets."""
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from clip_adapter_lite import datasets
from clip_adapter_lite.datasets import TABLE, load_dataset, template_set
from clip_adapter_lite.datasets.base import complete, hold_out, pictures
from clip_adapter_lite.datasets.coop import read_split
from clip_adapter_lite.splits import SPLITS

SHARED = Path(__file__).parent.parent.parent / "shared/data"
REAL = {  # train, val, test and classes of the files that are at hand, as CoOp's paper counts them
    "caltech101": (4128, 1649, 2465, 100), "oxford_pets": (2944, 736, 3669, 37), "stanford_cars": (6509, 1635, 8041, 196),
    "flowers102": (4093, 1633, 2463, 102), "dtd": (2820, 1128, 1692, 47), "eurosat": (13500, 5400, 8100, 10),
    "ucf101": (7639, 1898, 3783, 101)}


def real_rows(name: str) -> dict:
    path = SHARED / "coop-splits" / Path(TABLE[name]["split_json"]).name
    if not path.is_file():
        pytest.skip("CoOp's split files are not on this machine")
    return json.loads(path.read_text(encoding="utf-8"))


def put_split(root: Path, name: str, rows: dict) -> None:
    path = root / TABLE[name]["split_json"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def touch_all(images: Path, rows: dict) -> None:
    """An empty file for every row: listing opens none of them."""
    for file, _, _ in (row for part in SPLITS for row in rows[part]):
        path = os.path.join(images, file)
        try:
            os.close(os.open(path, os.O_CREAT))
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path))
            os.close(os.open(path, os.O_CREAT))


def same_files(data, rows, *parts: str) -> bool:
    """Whether these parts together hold the same pictures (by file name) with the same class names as CoOp's."""
    ours = {(path.name, data.classnames[label]) for part in parts for path, label in data.splits[part]}
    return ours == {(Path(file).name, name) for part in parts for file, _, name in rows[part]}


# ── the real files ────────────────────────────────────────────────────────────────────────────────────────────

SLOW = {"eurosat": pytest.mark.slow}  # 27 000 files


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in REAL])
def test_a_real_split_file_gives_its_counts_names_and_rows(name, tmp_path):
    rows = real_rows(name)
    images = tmp_path / TABLE[name]["folders"][-1] / TABLE[name]["images"]  # where torchvision puts pictures
    touch_all(images, rows)
    put_split(tmp_path, name, rows)  # where CoOp wants its file
    data = load_dataset(name, tmp_path)
    assert (*(len(data.splits[part]) for part in SPLITS), len(data.classnames)) == REAL[name]
    assert data.protocol == f"CoOp's {Path(TABLE[name]['split_json']).name}"
    for part in SPLITS:
        assert [(path, label, data.classnames[label]) for path, label in data.splits[part]] == \
            [(images / file, label, title) for file, label, title in rows[part]]


def test_caltech101_and_dtd_on_the_real_pictures(tmp_path):
    for name, folder, images in (("caltech101", "caltech-101", "101_ObjectCategories"), ("dtd", "dtd", "images")):
        rows = real_rows(name)
        if not (SHARED / folder / images).is_dir():
            pytest.skip("the real pictures are not on this machine")
        put_split(tmp_path, name, rows)
        (tmp_path / folder / images).symlink_to(SHARED / folder / images)
    data = load_dataset("caltech101", tmp_path)
    assert tuple(len(data.splits[part]) for part in SPLITS) == (4128, 1649, 2465) and len(data.classnames) == 100
    with pytest.raises(datasets.BankError, match="^dtd: 4440 of 5640 pictures are missing, the first .*_[0-9]{4}.jpg;"):
        load_dataset("dtd", tmp_path)
    data = load_dataset("dtd", tmp_path, allow_missing=True)
    assert tuple(len(data.splits[part]) for part in SPLITS) == (600, 240, 360)
    assert data.classnames == tuple(sorted(path.name for path in (SHARED / "dtd/images").iterdir()))
    assert data.protocol.endswith("; 4440 missing pictures left out, 10 of 47 classes there")


@pytest.mark.parametrize("name", ["caltech101", pytest.param("eurosat", marks=SLOW["eurosat"])])
def test_without_the_file_the_folders_give_the_same_classes(name, tmp_path):
    rows = real_rows(name)
    images = tmp_path / TABLE[name]["folders"][0] / TABLE[name]["images"]
    touch_all(images, rows)
    data = load_dataset(name, tmp_path)
    names = {label: title for _, label, title in rows["train"]}
    assert data.classnames == tuple(names[label] for label in range(len(names)))
    every = {(path.name, label) for part in SPLITS for path, label in data.splits[part]}
    assert every == {(Path(file).name, label) for part in SPLITS for file, label, _ in rows[part]}
    sizes = [len(data.splits[part]) / TABLE[name]["pictures"] for part in SPLITS]
    assert np.allclose(sizes, (0.5, 0.2, 0.3), atol=0.002)


def test_without_the_file_pets_annotations_give_the_same_classes_and_test_split(tmp_path):
    rows = real_rows("oxford_pets")
    touch_all(tmp_path / "oxford_pets/images", rows)
    (tmp_path / "oxford_pets/annotations").mkdir()
    for part, listed in (("trainval", rows["train"] + rows["val"]), ("test", rows["test"])):
        (tmp_path / f"oxford_pets/annotations/{part}.txt").write_text(
            "".join(f"{file.removesuffix('.jpg')} {label + 1} 1 1\n" for file, label, _ in listed))
    data = load_dataset("oxford_pets", tmp_path)
    assert same_files(data, rows, "test") and same_files(data, rows, "train", "val")
    assert abs(len(data.splits["val"]) - 736) < 37  # a fifth of each class, as CoOp's, give or take rounding


def test_without_the_file_ucf101s_lists_give_the_same_classes_and_test_split(tmp_path):
    rows = real_rows("ucf101")
    touch_all(tmp_path / "ucf101/UCF-101-midframes", rows)
    lists = tmp_path / "ucf101/ucfTrainTestlist"
    lists.mkdir()
    clip = lambda file: file.split("/")[0].replace("_", "") + "/" + Path(file).stem + ".avi"
    actions = {label: title.replace("_", "") for _, label, title in rows["train"]}
    (lists / "classInd.txt").write_text("".join(f"{label + 1} {actions[label]}\n" for label in sorted(actions)))
    (lists / "trainlist01.txt").write_text(
        "".join(f"{clip(file)} {label + 1}\n" for file, label, _ in rows["train"] + rows["val"]))
    (lists / "testlist01.txt").write_text("".join(f"{clip(file)}\n" for file, _, _ in rows["test"]))
    data = load_dataset("ucf101", tmp_path)
    assert same_files(data, rows, "test") and same_files(data, rows, "train", "val")


def test_without_the_file_the_cars_mat_files_give_the_same_classes_and_test_split(tmp_path):
    rows = real_rows("stanford_cars")
    root = tmp_path / "stanford_cars"
    touch_all(root, rows)
    (root / "devkit").mkdir()
    names = {label: title for _, label, title in rows["train"]}
    last = [" ".join([*names[label].split(" ")[1:], names[label].split(" ")[0]]) for label in range(196)]
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array([last], dtype=object)})
    for path, listed in (("devkit/cars_train_annos.mat", rows["train"] + rows["val"]),
                         ("cars_test_annos_withlabels.mat", rows["test"])):
        annotations = [(label + 1, Path(file).name) for file, label, _ in listed]
        savemat(root / path, {"annotations": np.array([annotations], dtype=[("class", object), ("fname", object)])})
    data = load_dataset("stanford_cars", tmp_path)
    assert same_files(data, rows, "test") and same_files(data, rows, "train", "val")
    assert data.classnames[0] == "2000 AM General Hummer SUV"


def test_without_the_file_the_flowers_are_called_the_same(tmp_path, monkeypatch):
    """The official numbering is not at hand, so the three lists here are made up; labels and names are the real ones."""
    rows = real_rows("flowers102")
    root = tmp_path / "oxford_flowers"
    touch_all(root / "jpg", rows)
    label_of = {int(Path(file).stem[-5:]): label for part in SPLITS for file, label, _ in rows[part]}
    savemat(root / "imagelabels.mat", {"labels": np.array([[label_of[n] + 1 for n in range(1, 8190)]])})
    numbers = {part: np.array([[int(Path(file).stem[-5:]) for file, _, _ in rows[part]]]) for part in SPLITS}
    savemat(root / "setid.mat", {"trnid": numbers["train"], "valid": numbers["val"], "tstid": numbers["test"]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: Path(path).is_file())
    data = load_dataset("flowers102", tmp_path)
    assert same_files(data, rows, "test") and same_files(data, rows, "train", "val")


# ── small files ───────────────────────────────────────────────────────────────────────────────────────────────

def split_of(*rows, **parts) -> dict:
    return {"train": list(rows), "val": [], "test": []} | parts


def test_rows_are_read_as_they_are_and_labels_close_up(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(split_of(
        ["b c/1.JPG", 7, "b c"], ["a/1.jpg", 2, "a"], val=[["b c/2.jpg", 7, "b c"]], test=[["d/é.png", 9, "d"]])),
        encoding="utf-8")
    images = tmp_path / "images"
    names, splits = read_split(tmp_path / "s.json", images)
    assert names == ("a", "b c", "d")
    assert splits == {"train": [(images / "b c/1.JPG", 1), (images / "a/1.jpg", 0)], "val": [(images / "b c/2.jpg", 1)],
                      "test": [(images / "d/é.png", 2)]}


@pytest.mark.parametrize("text, said", [
    ("{", "is not one of CoOp's split files (JSONDecodeError)"), ("[]", "(TypeError)"), ('{"train": []}', "(KeyError)"),
    ('{"train": [["a.jpg", 0]], "val": [], "test": []}', "(ValueError)"),
    ('{"train": [["a.jpg", "x", "a"]], "val": [], "test": []}', "(ValueError)"),
    ('{"train": [[1, 0, "a"]], "val": [], "test": []}', "(TypeError)"),
    ('{"train": [], "val": [], "test": []}', "lists no picture"),
    ('{"train": [["a.jpg", 0, "a"]], "val": [["b.jpg", 0, "b"]], "test": []}', "gives label 0 two class names"),
])
def test_a_file_that_is_no_split_is_refused(text, said, tmp_path, expect_refused):
    (tmp_path / "s.json").write_text(text)
    with expect_refused(said):
        read_split(tmp_path / "s.json", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_split_file_from_windows_is_read_as_coops_own(encoding, tmp_path):
    rows = {"train": [["b\\1.jpg", 1, "b"], ["a\\deep\\1.jpg", 0, "\u00e4"]], "val": [], "test": []}
    (tmp_path / "s.json").write_text(json.dumps(rows, ensure_ascii=False), encoding=encoding)
    names, splits = read_split(tmp_path / "s.json", tmp_path)
    assert names == ("\u00e4", "b")
    assert splits["train"] == [(tmp_path / "b" / "1.jpg", 1), (tmp_path / "a" / "deep" / "1.jpg", 0)]


def test_the_papers_datasets_are_read_plainly(tmp_path, monkeypatch):
    rows = {part: [[f"{part}{c}.jpg", c, f"class {c}"] for c in (0, 1)] for part in SPLITS}
    touch_all(tmp_path / TABLE["dtd"]["folders"][0] / TABLE["dtd"]["images"], rows)
    put_split(tmp_path, "dtd", rows)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.setenv("USERPROFILE", str(tmp_path.parent))
    data = load_dataset("dtd", f"~/{tmp_path.name}")
    assert data.plain and data.cap(train=1).plain
    assert data.splits == load_dataset("dtd", tmp_path).splits


def test_nothing_there_at_all_is_refused_even_if_missing_is_allowed(tmp_path, expect_refused):
    for allowed in (False, True):
        with expect_refused("toy: 1 of 1 pictures are missing, the first "):
            complete("toy", ("a",), split_of((tmp_path / "a.jpg", 0)), allowed)


def test_the_note_counts_pictures_and_classes(tmp_path):
    (tmp_path / "a.jpg").touch()
    splits = split_of((tmp_path / "a.jpg", 1), (tmp_path / "b.jpg", 0), test=[(tmp_path / "c.jpg", 1)])
    assert complete("toy", ("x", "y"), splits, True) == \
        (("y",), split_of((tmp_path / "a.jpg", 0)), "2 missing pictures left out, 1 of 2 classes there")
    whole = split_of((tmp_path / "a.jpg", 0))
    assert complete("toy", ("x",), whole) == (("x",), whole, "")


def test_what_is_held_out_is_a_share_of_each_class_up_to_a_limit():
    items = [(f"{label}-{n}", label) for label, many in enumerate((20, 9, 2, 1, 200)) for n in range(many)]
    rest, held = hold_out(items, seed=1)
    assert Counter(label for _, label in held) == {0: 4, 1: 2, 2: 1, 4: 40}  # class 3's only picture stays
    assert sorted(rest + held) == sorted(items) and rest == [item for item in items if item not in held]
    assert Counter(label for _, label in hold_out(items, seed=1, most=16)[1]) == {0: 4, 1: 2, 2: 1, 4: 16}
    assert hold_out(items, seed=1) == (rest, held) != hold_out(items, seed=2)


def test_pictures_are_told_by_their_suffix_and_hidden_ones_left_out(tmp_path):
    for name in ("b.JPG", "a.jpeg", "c.txt", ".d.png", "._a.jpeg", "jpg", "sub/e.TIFF", ".cache/f.png", "g.jpg.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert pictures(tmp_path) == [tmp_path / "a.jpeg", tmp_path / "b.JPG", tmp_path / "sub/e.TIFF"]
    assert pictures(tmp_path / "absent") == []


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────

ELEVEN = ["imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397",
          "dtd", "eurosat", "ucf101"]
SHIFT = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]


def test_the_papers_eleven_come_first_then_the_shifts_then_your_folder():
    assert datasets.names() == [*ELEVEN, *SHIFT, "folder"] == list(TABLE)


def test_the_table_says_everything_of_each_and_has_a_reader_for_it():
    keys = {"title", "classes", "pictures", "splits", "templates", "licence", "size", "source", "folders", "images",
            "split_json", "by_hand"}
    for name, facts in TABLE.items():
        assert set(facts) - {"archive"} == keys, name
        assert all("{}" in template for template in facts["templates"]) and facts["licence"], name
        assert not facts["by_hand"].endswith(".") and ". " not in facts["by_hand"], name  # it ends a sentence
    assert set(datasets.READERS) == {*ELEVEN, *SHIFT}
    for name, (train, val, test, classes) in REAL.items():
        assert TABLE[name]["splits"] == {"train": train, "val": val, "test": test} and TABLE[name]["classes"] == classes
        assert TABLE[name]["pictures"] == train + val + test


def test_templates_are_the_papers():
    photo = {"imagenet", "stanford_cars", "sun397", "caltech101", *SHIFT, "folder"}
    assert {name for name, facts in TABLE.items() if facts["templates"] == ["a photo of a {}."]} == photo
    assert {name: TABLE[name]["templates"] for name in TABLE if name not in photo} == {
        "oxford_pets": ["a photo of a {}, a type of pet."], "flowers102": ["a photo of a {}, a type of flower."],
        "fgvc_aircraft": ["a photo of a {}, a type of aircraft."], "food101": ["a photo of {}, a type of food."],
        "dtd": ["{} texture."], "eurosat": ["a centered satellite photo of {}."],
        "ucf101": ["a photo of a person doing {}."]}


def test_the_ensembles_are_seven_and_eighty(expect_refused):
    seven, eighty = template_set("seven"), template_set("openai-80")
    assert len(set(seven)) == 7 and len(set(eighty)) == 80 and set(seven) < set(eighty)
    assert all(template.format("x").count("x") >= 1 and template.count("{}") == 1 for template in eighty)
    assert seven[0] == "itap of a {}." and "a origami {}." in seven
    with expect_refused("Unknown set of templates 'eight'; give seven or openai-80", ValueError):
        template_set("eight")
