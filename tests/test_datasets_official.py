"""Every dataset in the form its makers publish it, drawn small: the lists and .mat files in their real syntax."""
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from test_building_resume import Tower

from clip_adapter_lite import datasets
from clip_adapter_lite.banks import build_bank
from clip_adapter_lite.datasets import TABLE, load_dataset
from clip_adapter_lite.splits import SPLITS

MODES = ("RGB", "L", "P", "CMYK")  # what the real files come in; the mode goes round with the picture's number


def draw(path: Path, label: int, number: int = 0) -> None:
    """A picture whose grey value tells its label; a PNG by another name where JPEG could not hold a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = MODES[number % len(MODES)]
    Image.new("L", (16, 12), 20 * label).convert(mode).save(path, "PNG" if mode == "P" else "JPEG")


def shown(path: Path) -> int:
    """The label that the picture itself tells."""
    with Image.open(path) as picture:
        return round(picture.convert("RGB").getpixel((8, 6))[0] / 20)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def check(data, train: int, val: int, test: int, unreadable=()) -> None:
    """The sizes are these, no picture is listed twice, and every one shows what its label says."""
    assert tuple(len(data.splits[part]) for part in SPLITS) == (train, val, test)
    paths = [path for items in data.splits.values() for path, _ in items]
    assert len(set(paths)) == len(paths) and set(unreadable) <= set(paths)
    assert all(shown(path) == label for items in data.splits.values() for path, label in items if path not in unreadable)


# ── datasets with official lists, in CoOp's layout and in torchvision's ───────────────────────────────────────

def pets(folder: Path) -> Path:
    """Two cats and a dog, labels from 1: ten training pictures of each and four to test with."""
    lines = {"trainval": [], "test": []}
    for label, breed in enumerate(("Egyptian_Mau", "Sphynx", "yorkshire_terrier")):
        for n in range(14):
            draw(folder / f"images/{breed}_{n}.jpg", label, n)
            lines["test" if n > 9 else "trainval"].append(f"{breed}_{n} {label + 1} {1 + (label == 2)} 1")
    for part, rows in lines.items():
        write(folder / f"annotations/{part}.txt", *rows)
    return folder / "images/Sphynx_3.jpg"


def food(folder: Path) -> Path:
    listed = {"train": {}, "test": {}}
    for label, dish in enumerate(("apple_pie", "pad_thai")):
        for n in range(14):
            draw(folder / f"images/{dish}/{100 + n}.jpg", label, n)
            listed["test" if n > 9 else "train"].setdefault(dish, []).append(f"{dish}/{100 + n}")
    for part, rows in listed.items():
        write(folder / f"meta/{part}.json", json.dumps(rows))
        write(folder / f"meta/{part}.txt", *(row for dish in rows.values() for row in dish))
    return folder / "images/pad_thai/105.jpg"


def aircraft(folder: Path) -> Path:
    """Variants with a space and a slash in their names; a line is the picture's number, a space, the variant."""
    names = ("A300B4", "Boeing 717", "F/A-18")
    write(folder / "variants.txt", *names)
    numbers = {part: [] for part in SPLITS}
    for label, variant in enumerate(names):
        for n in range(9):
            draw(folder / f"images/{label}00{n}.jpg", label, n)
            numbers[SPLITS[n % 3]].append(f"{label}00{n} {variant}")
    for part, rows in numbers.items():
        write(folder / f"images_variant_{part}.txt", *rows)
    return folder / "images/2004.jpg"


def textures(folder: Path) -> Path:
    for label, texture in enumerate(("banded", "polka-dotted")):
        for n in range(9):
            draw(folder / f"images/{texture}/{texture}_{n:04}.jpg", label, n)
    for k, part in enumerate(SPLITS):
        write(folder / f"labels/{part}1.txt",
              *(f"{t}/{t}_{n:04}.jpg" for t in ("banded", "polka-dotted") for n in range(9) if n % 3 == k))
    return folder / "images/banded/banded_0004.jpg"


def flowers(folder: Path) -> Path:
    """Twenty-four pictures of three flowers in turn, labels from 1; every second one is for testing."""
    labels = [n % 3 for n in range(60)]
    for n, label in enumerate(labels):
        draw(folder / f"jpg/image_{n + 1:05}.jpg", label, n)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8) + 1})
    numbers = np.arange(1, 61, dtype=np.uint16)
    savemat(folder / "setid.mat", {"trnid": numbers[None, :15], "valid": numbers[None, 15:30], "tstid": numbers[None, 30:]})
    return folder / "jpg/image_00007.jpg"


def cars(folder: Path) -> Path:
    """As Stanford has it: a 1 × N struct of boxes, class from 1 and file name, and a 1 × C cell of names, year last."""
    fields = [(f, object) for f in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for part, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 2, 15, 11, n % 2 + 1, f"{n + 1:05}.jpg") for n in range(20 if part == "train" else 6)]
        for n, row in enumerate(rows):
            draw(folder / f"cars_{part}/{row[5]}", n % 2, n)
        (folder / "devkit").mkdir(exist_ok=True)
        savemat(folder / path, {"annotations": np.array([rows], dtype=fields)})
    savemat(folder / "devkit/cars_meta.mat",
            {"class_names": np.array([["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]], dtype=object)})
    return folder / "cars_train/00004.jpg"


@pytest.fixture
def no_md5(monkeypatch):
    """torchvision checks the hashes of the real flowers' .mat files, which drawn ones cannot have."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: Path(path).is_file())


FIFTH = "a fifth of train for validation by hash, seed 1"
LISTED = [  # name, folder, maker, sizes, class names, protocol
    ("oxford_pets", pets, (24, 6, 12), ("egyptian_mau", "sphynx", "yorkshire_terrier"), f"official train and test, {FIFTH}"),
    ("food101", food, (16, 4, 8), ("apple_pie", "pad_thai"), f"official train and test, {FIFTH}"),
    ("fgvc_aircraft", aircraft, (9, 9, 9), ("A300B4", "Boeing 717", "F/A-18"), "official train, val and test"),
    ("dtd", textures, (6, 6, 6), ("banded", "polka-dotted"), "official train, val and test, part 1"),
    ("flowers102", flowers, (24, 6, 30), ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
     "official train and val pooled, a fifth of it for validation by hash, seed 1; official test; 3 of 102 classes there"),
    ("stanford_cars", cars, (16, 4, 6), ("2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan"),
     f"official train and test, {FIFTH}"),
]


@pytest.mark.parametrize("name, make, sizes, classnames, protocol, folder",
                         [(*row, folder) for row in LISTED for folder in TABLE[row[0]]["folders"]])
def test_official_lists_are_read_in_both_layouts(name, make, sizes, classnames, protocol, folder, tmp_path, no_md5):
    (tmp_path / folder).mkdir(parents=True)
    broken = make(tmp_path / folder)
    truncate(broken)
    data = load_dataset(name, tmp_path)
    check(data, *sizes, unreadable=[broken])
    assert (data.classnames, data.protocol, data.name) == (classnames, protocol, name)
    assert list(data.templates) == TABLE[name]["templates"] and data.licence == TABLE[name]["licence"]
    held = Counter(label for _, label in data.splits["val"])
    assert set(held) == set(range(len(classnames))) and len(set(held.values())) == 1  # the same number of each class


def test_another_seed_holds_out_other_pictures_and_never_touches_test(tmp_path):
    pets(tmp_path / "oxford_pets")
    one, again, two = (load_dataset("oxford_pets", tmp_path, seed=seed).splits for seed in (1, 1, 2))
    assert one == again and one["test"] == two["test"]
    assert one["val"] != two["val"] and sorted(one["train"] + one["val"]) == sorted(two["train"] + two["val"])


def test_coops_cat_to_name_gives_the_flowers_their_names(tmp_path, no_md5):
    flowers(tmp_path / "oxford_flowers")
    write(tmp_path / "oxford_flowers/cat_to_name.json", json.dumps({"2": "b", "10": "j", "1": "a", "3": "c"}))
    assert load_dataset("flowers102", tmp_path).classnames == ("a", "b", "c")


def test_a_listed_picture_that_is_missing_is_counted_and_named(tmp_path, expect_refused):
    pets(tmp_path / "oxford_pets")
    for name in ("Sphynx_1", "Egyptian_Mau_12"):
        (tmp_path / f"oxford_pets/images/{name}.jpg").unlink()
    with expect_refused("oxford_pets: 2 of 42 pictures are missing, the first "):
        load_dataset("oxford_pets", tmp_path)
    data = load_dataset("oxford_pets", tmp_path, allow_missing=True)
    assert sum(len(items) for items in data.splits.values()) == 40 and len(data.splits["test"]) == 11
    assert data.protocol.endswith("seed 1; 2 missing pictures left out") and len(data.classnames) == 3


def test_a_class_that_is_wholly_missing_disappears_and_the_labels_close_up(tmp_path):
    pets(tmp_path / "oxford_pets")
    for path in (tmp_path / "oxford_pets/images").glob("Sphynx_*"):
        path.unlink()
    data = load_dataset("oxford_pets", tmp_path, allow_missing=True)
    assert data.classnames == ("egyptian_mau", "yorkshire_terrier")
    assert {(path.name.split("_")[0], label) for items in data.splits.values() for path, label in items} == \
        {("Egyptian", 0), ("yorkshire", 1)}
    assert data.protocol.endswith("14 missing pictures left out, 2 of 3 classes there")


def test_lists_that_are_not_there_are_named_where_they_should_be(tmp_path, expect_refused):
    textures(tmp_path / "dtd")
    (tmp_path / "dtd/labels/val1.txt").unlink()
    with expect_refused(str(tmp_path / "dtd/labels/val1.txt")):
        load_dataset("dtd", tmp_path)


def test_flowers_without_their_lists_say_what_belongs_there(tmp_path, expect_refused):
    (tmp_path / "oxford_flowers/jpg").mkdir(parents=True)
    with expect_refused("imagelabels.mat and setid.mat beside jpg/"):
        load_dataset("flowers102", tmp_path)


# ── UCF101 and SUN397 ─────────────────────────────────────────────────────────────────────────────────────────

def midframes(folder: Path) -> Path:
    actions = ("ApplyLipstick", "TaiChi", "YoYo")
    write(folder / "ucfTrainTestlist/classInd.txt", *(f"{n} {action}" for n, action in enumerate(actions, 1)))
    clips = {action: [f"{action}/v_{action}_g{g:02}_c01.avi" for g in range(13)] for action in actions}
    for label, (called, names) in enumerate(zip(("Apply_Lipstick", "Tai_Chi", "Yo_Yo"), clips.values())):
        for n, clip in enumerate(names):
            draw(folder / "UCF-101-midframes" / called / f"{Path(clip).stem}.jpg", label, n)
    write(folder / "ucfTrainTestlist/testlist01.txt", *(clip for names in clips.values() for clip in names[:3]))
    write(folder / "ucfTrainTestlist/trainlist01.txt",
          *(f"{clip} {label}" for label, names in enumerate(clips.values(), 1) for clip in names[3:]))
    return folder / "UCF-101-midframes/Tai_Chi/v_TaiChi_g04_c01.jpg"


def test_ucf101s_middle_frames_go_by_the_first_official_list(tmp_path):
    midframes(tmp_path / "ucf101")
    data = load_dataset("ucf101", tmp_path)
    check(data, 24, 6, 9)
    assert data.classnames == ("Apply_Lipstick", "Tai_Chi", "Yo_Yo") and data.protocol == f"official list 1, {FIFTH}"
    assert {path.name.split("_g")[1][:2] for path, _ in data.splits["test"]} == {"00", "01", "02"}


def scenes(folder: Path) -> Path:
    places = ("/a/abbey", "/a/apartment_building/outdoor", "/p/pub/indoor")
    write(folder / "ClassName.txt", *places)
    for label, place in enumerate(places):
        for n in range(10):
            draw(folder / f"{place[1:]}/sun_{label}{n}.jpg", label, n)
    return folder / "a/apartment_building/outdoor/sun_13.jpg"


@pytest.mark.parametrize("folder", TABLE["sun397"]["folders"])
@pytest.mark.parametrize("lists", [True, False])
def test_sun397_goes_by_its_partition_or_by_the_rule(folder, lists, tmp_path, monkeypatch):
    scenes(tmp_path / folder)
    if lists:  # of the ten pictures, five are for training and four for testing
        for part, numbers in (("Training", range(5)), ("Testing", range(5, 9))):
            write(tmp_path / folder / f"../{part}_01.txt",
                  *(f"{place}/sun_{label}{n}.jpg" for label, place in
                    enumerate(("/a/abbey", "/a/apartment_building/outdoor", "/p/pub/indoor")) for n in numbers))
    monkeypatch.setitem(TABLE["sun397"], "pictures", 30)
    data = load_dataset("sun397", tmp_path)
    check(data, *((12, 3, 12) if lists else (15, 6, 9)))
    assert data.classnames == ("abbey", "outdoor apartment_building", "indoor pub")
    assert data.protocol == (f"official partition 1, {FIFTH}" if lists else "CoOp's 50/20/30 rule, by hash, seed 1")
    if lists:
        assert {path.stem[-1] for path, _ in data.splits["test"]} == set("5678")
    else:  # in name order before the split, whatever the disk's order
        every = sorted(item for items in data.splits.values() for item in items)
        assert data.splits == datasets.split_by_hash(every, seed=1)


# ── folders of classes: Caltech101, EuroSAT, ImageNet and its relatives ───────────────────────────────────────

def fill(folder: Path, classes, many: int = 10, suffix: str = ".jpg") -> None:
    for label, name in enumerate(classes):
        for n in range(many):
            draw(folder / name / f"image_{n:04}{suffix}", label, n)


@pytest.mark.parametrize("folder", TABLE["caltech101"]["folders"])
def test_caltech101_has_coops_names_and_neither_background_nor_easy_faces(folder, tmp_path, monkeypatch):
    images = tmp_path / folder / "101_ObjectCategories"
    classes = ("Faces", "Leopards", "Motorbikes", "airplanes", "car_side")  # upper case sorts first, as in CoOp
    fill(images, classes)
    fill(images, ("BACKGROUND_Google", "Faces_easy", ".hidden"), 2)
    (images / "car_side/image_0003.jpg").rename(images / "car_side/image_0003.JPG")
    (images / "car_side/._image_0001.jpg").touch()
    (images / "car_side/Thumbs.db").touch()
    truncate(images / "Leopards/image_0001.jpg")
    monkeypatch.setitem(TABLE["caltech101"], "pictures", 50)
    data = load_dataset("caltech101", tmp_path)
    check(data, 25, 10, 15, unreadable=[images / "Leopards/image_0001.jpg"])
    assert data.classnames == ("face", "leopard", "motorbike", "airplane", "car_side")
    assert data.protocol == "CoOp's 50/20/30 rule, by hash, seed 1"
    assert any(path.name == "image_0003.JPG" for items in data.splits.values() for path, _ in items)


def test_fewer_pictures_than_there_should_be_are_counted(tmp_path, monkeypatch, expect_refused):
    fill(tmp_path / "eurosat/2750", ("Forest", "SeaLake"), 9)
    monkeypatch.setitem(TABLE["eurosat"], "pictures", 20)
    with expect_refused("eurosat: 2 of 20 pictures are missing; unpack the dataset again ("):
        load_dataset("eurosat", tmp_path)
    data = load_dataset("eurosat", tmp_path, allow_missing=True)
    assert data.classnames == ("Forest", "Sea or Lake")
    assert data.protocol == "CoOp's 50/20/30 rule, by hash, seed 1; 2 missing pictures left out"


IDS = {"n01440764": (0, "tench"), "n01443537": (1, "goldfish"), "n15075141": (999, "toilet paper")}


@pytest.mark.parametrize("folder", TABLE["imagenet"]["folders"])
def test_imagenets_val_is_test_and_validation_comes_from_train(folder, tmp_path, monkeypatch):
    fill(tmp_path / folder / "train", IDS, 100, ".JPEG")
    fill(tmp_path / folder / "val", IDS, 5, ".JPEG")
    monkeypatch.setitem(TABLE["imagenet"], "pictures", 315)
    data = load_dataset("imagenet", tmp_path)
    check(data, 3 * 84, 3 * 16, 15)
    assert data.classnames == ("tench", "goldfish", "toilet paper")
    assert data.protocol == ("official val as test, 16 training pictures a class for validation by hash, seed 1; "
                             "3 of 1000 classes there")
    assert all("train" in path.parts for path, _ in data.splits["train"] + data.splits["val"])
    assert Counter(label for _, label in data.splits["val"]) == {0: 16, 1: 16, 2: 16}


@pytest.mark.parametrize("name, ids", [("imagenetv2", False), ("imagenetv2", True), ("imagenet_sketch", True),
                                       ("imagenet_a", True), ("imagenet_r", True)])
def test_imagenets_relatives_hold_test_pictures_under_imagenets_names(name, ids, tmp_path, monkeypatch):
    """ImageNetV2's folders are class numbers, and "999" comes after "1": in name order it would come before."""
    folder = tmp_path / TABLE[name]["folders"][0]
    fill(folder, IDS if ids else [str(index) for index, _ in IDS.values()])
    write(folder / "README.txt", "read me")
    monkeypatch.setitem(TABLE[name], "pictures", 30)
    data = load_dataset(name, tmp_path)
    check(data, 0, 0, 30)
    assert data.classnames == tuple(title for _, title in IDS.values())
    few = name in ("imagenetv2", "imagenet_sketch")  # the other two have 200 of the classes by design
    assert data.protocol == "test only, for shift from ImageNet" + ("; 3 of 1000 classes there" if few else "")


def test_imagenet_folders_are_named_in_class_order():
    """open_clip's names are in the order of the sorted ids, and so are timm's ids: three classes known by heart."""
    ids, titles = datasets.imagenet.class_ids()
    assert len(ids) == len(titles) == 1000 and list(ids) == sorted(ids)
    assert [titles[ids.index(wnid)] for wnid in ("n02123045", "n02504458", "n07753592")] == \
        ["tabby cat", "African bush elephant", "banana"]


# ── every one of them into a bank ─────────────────────────────────────────────────────────────────────────────


def caltech(folder: Path) -> Path:
    fill(folder / "101_ObjectCategories", ("Faces", "crocodile head", "lotus"))  # no real one has a space, but it may
    return folder / "101_ObjectCategories/crocodile head/image_0004.jpg"


def by_id(folder: Path) -> Path:
    fill(folder, IDS, suffix=".JPEG")
    return folder / "n01443537/image_0004.JPEG"


def imagenet(folder: Path) -> Path:
    by_id(folder / "val")
    return by_id(folder / "train")


def satellite(folder: Path) -> Path:
    fill(folder, ("Forest", "SeaLake"))
    return folder / "SeaLake/image_0004.jpg"


def own(folder: Path) -> Path:
    fill(folder, ("grey_cat", "my dog"))
    return folder / "my dog/image_0004.jpg"


TREES = {name: make for name, make, *_ in LISTED} | {"ucf101": midframes, "sun397": scenes, "caltech101": caltech,
         "eurosat": satellite, "imagenet": imagenet, "folder": own} | dict.fromkeys(
             ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"), by_id)


def upper_case(folder: Path) -> bool:
    """Rename a picture so that its suffix is in the other case, in the lists too; False where the format has no choice."""
    listed = [path for path in folder.rglob("*1.txt") if ".jpg" in path.read_text() and "labels" in path.parts]
    if listed:  # DTD's
        old = listed[0].read_text().split()[-1]
        listed[0].write_text(listed[0].read_text().replace(old, old.replace(".jpg", ".JPG")))
        path = folder / "images" / old
    elif list(folder.glob("*.txt")) or any((folder / part).is_dir() for part in ("annotations", "meta", "jpg", "devkit",
                                                                               "ucfTrainTestlist")):
        return False
    else:
        path = next(path for path in sorted(folder.rglob("image_0007.*")))
    path.rename(path.with_suffix(path.suffix.swapcase()))
    return True


def test_there_is_a_tree_for_every_dataset():
    assert set(TREES) == set(TABLE)


@pytest.mark.parametrize("name", TREES)
def test_every_dataset_goes_into_a_bank_but_for_its_truncated_picture(name, tmp_path, monkeypatch, no_md5, expect_refused):
    """Grey-scale, palette and CMYK pictures among them show their label to the tower; one suffix is in the other case."""
    folder = tmp_path / (TABLE[name]["folders"] or ["."])[0]
    folder.mkdir(parents=True, exist_ok=True)
    broken = TREES[name](folder)
    changed = upper_case(folder)
    assert changed == (name not in ("oxford_pets", "food101", "fgvc_aircraft", "flowers102", "stanford_cars", "ucf101",
                                    "sun397"))  # whose lists, or torchvision's reader of them, say .jpg of all
    truncate(broken)
    monkeypatch.setitem(TABLE[name], "pictures", 0)  # nothing is missing from folders so small
    data = load_dataset(name, tmp_path)
    assert changed == any(path.suffix in (".JPG", ".jpeg") for items in data.splits.values() for path, _ in items)
    with expect_refused(f"1 picture could not be read: {broken}; mend or replace", OSError):
        build_bank(data, Grey(), progress=False)
    bank = build_bank(data, Grey(), progress=False, skip_unreadable=True)
    assert bank.meta["protocol"].endswith("; 1 unreadable picture left out")
    total = sum(len(items) for items in data.splits.values())
    assert sum(len(split) for split in bank.splits.values()) == total - 1
    for split in bank.splits.values():
        assert torch.equal(((split.features[:, 0] - 1) / 20).round().long(), split.labels)


class Grey(Tower):
    """Features that are the mean grey value of the picture, plus one: all zeros would be refused."""
    def encode_images(self, batch):
        return batch.flatten(1).mean(1, keepdim=True) * 255 + torch.ones(len(batch), self.width)

    def encode_text(self, texts):
        return torch.rand(len(texts), self.width) + 1


# ── what is not there ─────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", [name for name in datasets.names() if name != "folder"])
def test_a_dataset_that_is_not_there_says_where_it_was_sought_and_what_to_do(name, tmp_path, expect_refused):
    with expect_refused(f"looked for {', '.join(TABLE[name]['folders'])}", FileNotFoundError):
        load_dataset(name, tmp_path)


def test_unknown_names_and_folders_are_refused(tmp_path, expect_refused):
    with expect_refused("Unknown dataset 'mnist'; give one of imagenet, caltech101", ValueError):
        load_dataset("mnist", tmp_path)
    for name in ("dtd", "folder"):
        with expect_refused(f"No folder {tmp_path / 'absent'}", FileNotFoundError):
            load_dataset(name, tmp_path / "absent")


@pytest.mark.parametrize("name", sorted(datasets.official.DOWNLOADS))
def test_a_dead_network_is_one_sentence_that_says_what_to_fetch_by_hand(name, tmp_path, monkeypatch, expect_refused):
    from urllib.error import URLError

    asked = []

    def dead(request, *_, **__):
        asked.append(request.full_url)
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", dead)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with expect_refused(f"known>); check the network, delete half-written archives in {tmp_path / 'new'}, or fetch it by "
                        f"hand: {TABLE[name]['by_hand']}."):
        load_dataset(name, tmp_path / "new", download=True)
    assert len(asked) == 3  # it was tried again


@pytest.mark.parametrize("name", ["stanford_cars", "ucf101", "imagenet_sketch"])
def test_what_has_no_address_says_so(name, tmp_path, expect_refused):
    with expect_refused("has no address to download from; fetch it by hand: "):
        load_dataset(name, tmp_path, download=True)


def test_imagenets_archives_are_asked_for_by_name(tmp_path, expect_refused):
    with expect_refused("register at image-net.org and put ILSVRC2012_devkit_t12.tar.gz"):
        load_dataset("imagenet", tmp_path, download=True)


def test_a_download_is_put_in_place_and_read(tmp_path, monkeypatch):
    """What torchvision does after the network is its own affair: here its download writes the tree it would unpack."""
    monkeypatch.setattr("torchvision.datasets.DTD._download", lambda self: textures(self._data_folder))
    data = load_dataset("dtd", tmp_path / "new", download=True)
    check(data, 6, 6, 6)
    assert all(path.is_relative_to(tmp_path / "new/dtd/dtd/images") for path, _ in data.splits["train"])


def test_what_is_there_is_not_downloaded_again(tmp_path, monkeypatch):
    textures(tmp_path / "dtd")
    monkeypatch.setattr("torchvision.datasets.DTD._download", lambda self: pytest.fail("asked for the network"))
    assert len(load_dataset("dtd", tmp_path, download=True).splits["test"]) == 6
