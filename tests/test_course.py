"""The course's banks under another backbone: rows, sources, what is lacking, and going on."""
import io
import json
import shutil
import zipfile

import pytest
import torch
from course_files import published, whole_model, write_files
from PIL import Image
from typer.testing import CliRunner

from clip_adapter_lite import BankError, FeatureBank, course_banks, list_banks, load_backbone
from clip_adapter_lite.cli.app import app
from clip_adapter_lite.course import NOTEBOOKS
from clip_adapter_lite.datasets import archives
from clip_adapter_lite.datasets.course import COURSE, SOURCES, course_dataset, rows_of, size_of
from clip_adapter_lite.splits import SPLITS

QUIET = dict(progress=False, tell=lambda line: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_backbone(whole_model(tmp_path_factory.mktemp("course") / "rn"), device="cpu")


def test_the_recorded_rows_are_those_of_the_bundled_banks():
    assert set(COURSE) == set(list_banks())
    for name in COURSE:
        bank = FeatureBank.load(name)
        assert size_of(name) == sum(map(len, bank.splits.values()))
        if name == "fashion-mnist":
            continue
        about = rows_of()[name]
        assert tuple(about["classnames"]) == bank.classnames and tuple(about["templates"]) == bank.templates
        for split in SPLITS:
            labels = [about["labels"][folder] for folder, stems in about[split] for _ in stems.split()]
            assert labels == bank.splits[split].labels.tolist(), f"{name}, {split}"
        keys = [(folder, stem) for split in SPLITS for folder, stems in about[split] for stem in stems.split()]
        assert len(set(keys)) == len(keys), "no picture is in two splits"


@pytest.mark.parametrize("bank", ["dtd10", "sun18", "pacs-art", "rsscn7", "grocery", "gtsrb"])
def test_pictures_are_found_under_the_names_of_the_public_dataset_in_the_rows_order(bank, tmp_path):
    many = write_files(bank, tmp_path, train=3, val=1, test=2)
    dataset = course_dataset(bank, tmp_path)
    for split, most in (("train", 3), ("val", 1), ("test", 2)):
        runs = rows_of()[bank][split]
        if bank not in ("grocery",):  # whose classes have runs of train and of val
            assert len(dataset.splits[split]) == sum(min(most, len(stems.split())) for _, stems in runs)
        for path, label in dataset.splits[split]:
            folder = next(f for f, stems in runs if path.stem in stems.split()
                          and str(path.parent).endswith("/" + published(bank, f)))
            assert rows_of()[bank]["labels"][folder] == label
    assert sum(map(len, dataset.splits.values())) == many
    assert f"{size_of(bank) - many} of {size_of(bank)} pictures missing and left out" in dataset.protocol


def test_pictures_without_the_known_names_are_drawn_and_the_protocol_says_so(tmp_path):
    for kind in rows_of()["pacs-photo"]["labels"]:
        place = tmp_path / "pacs/photo" / kind
        place.mkdir(parents=True)
        for number in range(70):
            (place / f"{number:06}.jpg").touch()
    dataset = course_dataset("pacs-photo", tmp_path)
    assert {s: len(items) for s, items in dataset.splits.items()} == {"train": 168, "val": 42, "test": 210}
    paths = [path for items in dataset.splits.values() for path, _ in items]
    assert len(set(paths)) == len(paths) and "not the bundled bank's pictures" in dataset.protocol
    assert all(dataset.classnames[y] == path.parent.name for path, y in dataset.splits["test"])


def test_what_is_not_there_is_one_sentence_with_the_way_to_it(tmp_path, expect_refused):
    with expect_refused("PACS is not in", FileNotFoundError):
        course_dataset("pacs-photo", tmp_path)
    write_files("rsscn7", tmp_path, train=1, val=1, test=1)
    shutil.rmtree(tmp_path / "rsscn7/RSSCN7-master/aGrass")
    with expect_refused("no training picture of class 'grassland' is there"):
        course_dataset("rsscn7", tmp_path)
    with pytest.raises(ValueError, match="none of the course's banks"):
        course_dataset("food101", tmp_path)


def zipped(folder, inner: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as bundle:
        for path in folder.rglob("*.*"):
            bundle.write(path, f"{inner}/{path.relative_to(folder)}")
    return raw.getvalue()


def test_an_archive_is_fetched_once_and_its_pictures_found(tmp_path, monkeypatch):
    write_files("rsscn7", tmp_path / "made", train=1, val=1, test=1)
    raw, asked = zipped(tmp_path / "made/rsscn7/RSSCN7-master", "RSSCN7-master"), []

    def fetch(url, path, sha256=None):
        asked.append((url, sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        return path
    monkeypatch.setattr(archives, "fetch", fetch)
    for _ in range(2):
        assert len(course_dataset("rsscn7", tmp_path / "root", download=True).splits["train"]) == 7
    assert asked == [(SOURCES["rsscn7"]["fetch"]["url"], None)]


@pytest.fixture
def parquet(tmp_path):
    """Makes a file as the hub keeps PACS: pictures with the names of the bundled rows, or without."""
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    def make(named=True, kinds=tuple(rows_of()["pacs-art"]["labels"]), domain=True):
        jpeg = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(jpeg, "JPEG")
        rows = [(kind, stem) for split in SPLITS for kind, stems in rows_of()["pacs-art"][split]
                for stem in stems.split()[:2] if kind in kinds]
        columns = {"image": [{"bytes": jpeg.getvalue(), "path": f"{stem}.jpg" if named else None} for _, stem in rows],
                   "label": [kinds.index(kind) for kind, _ in rows]}
        if domain:
            columns["domain"] = ["art_painting"] * len(rows)
        about = {"info": {"features": {"label": {"names": list(kinds)}}}}
        table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})
        pq.write_table(table, tmp_path / "train.parquet", row_group_size=5)
        return tmp_path / "train.parquet", len(rows)
    return make


def test_a_parquet_file_is_unpacked_to_the_names_that_it_gives(parquet, tmp_path, monkeypatch):
    file, many = parquet()
    monkeypatch.setattr(archives, "fetch", lambda url, path, sha256=None: file)
    dataset = course_dataset("pacs-art", tmp_path / "root", download=True)
    assert sum(map(len, dataset.splits.values())) == many == 42 and "bundled bank's rows" in dataset.protocol
    assert not [p for p in (tmp_path / "root/pacs").iterdir() if p.name != "art_painting"]


def test_of_a_parquet_file_only_the_wanted_classes_are_written_and_others_refused(parquet, tmp_path, expect_refused):
    from clip_adapter_lite.datasets.parquet import unpack_parquet
    file, many = parquet(named=False, domain=False)
    unpack_parquet(str(file), tmp_path / "out", ["dog", "house"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dog", "house"]
    assert len(list((tmp_path / "out/dog").iterdir())) == 6
    with expect_refused("has no class 'unicorn'"):
        unpack_parquet(str(file), tmp_path / "other", ["unicorn"])
    file.write_bytes(file.read_bytes()[:300])
    with expect_refused("train.parquet is damaged"):
        unpack_parquet(str(file), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_what_can_be_had_is_built_kept_and_what_cannot_is_told_with_its_notebooks(model, tmp_path):
    for bank in ("rsscn7", "pacs-photo"):
        write_files(bank, tmp_path, train=2, val=1, test=1)
    for path in (tmp_path / "rsscn7").rglob("*.jpg"):
        path.write_bytes(b"no picture")
    lines = []
    only = ["rsscn7", "pacs-photo", "gtsrb"]
    found = course_banks(model, tmp_path, only=only, download=False, progress=False, tell=lines.append)
    assert found.built == ["pacs-photo"] and list(found.lacking) == ["rsscn7", "gtsrb"]
    assert "28 pictures could not be read" in found.lacking["rsscn7"] and "by hand" in found.lacking["gtsrb"]
    assert found.notebooks_left_out == {n: [b for b in loads if b in ("rsscn7", "gtsrb")] for n, loads in NOTEBOOKS.items()
                                        if {"rsscn7", "gtsrb"} & set(loads)}
    assert len(lines) == 3 and "images/s, about" in lines[1] and "06 (rsscn7, gtsrb)" in str(found)
    bank = FeatureBank.load("pacs-photo", model.name)
    assert bank.text_features.shape == (7, 64) and len(bank.splits["train"]) == 14
    shutil.rmtree(tmp_path / "rsscn7")
    write_files("rsscn7", tmp_path, train=2, val=1, test=1)
    again = course_banks(model, tmp_path, only=only[:2], download=False, **QUIET)
    assert again.kept == ["pacs-photo"] and again.built == ["rsscn7"]


def test_a_bank_of_other_weights_is_not_taken_for_this_backbones(model, tmp_path):
    write_files("pacs-photo", tmp_path, train=1, val=1, test=1)
    course_banks(model, tmp_path, only=["pacs-photo"], download=False, **QUIET)
    whole_model(tmp_path / "other", seed=1)
    other = load_backbone(f"local-dir:{tmp_path / 'other'}", device="cpu")
    object.__setattr__(other, "name", model.name)  # the same folder, trained on
    found = course_banks(other, tmp_path, only=["pacs-photo"], download=False, **QUIET)
    assert "is of other weights" in found.lacking["pacs-photo"] and "--force" in found.lacking["pacs-photo"]
    assert course_banks(other, tmp_path, only=["pacs-photo"], download=False, force=True, **QUIET).built == ["pacs-photo"]


def test_no_network_is_a_sentence_for_each_bank(model, tmp_path, monkeypatch):
    def nobody(*args, **options):
        raise OSError("Network is unreachable")
    monkeypatch.setattr(archives, "urlopen", nobody)
    monkeypatch.setattr(archives.time, "sleep", lambda seconds: None)
    found = course_banks(model, tmp_path, only=["pacs-photo", "grocery"], **QUIET)
    for why in found.lacking.values():
        assert "Network is unreachable" in why and "by hand" in why and ". " not in why and "\n" not in why
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_command_says_what_is_lacking_and_where_everything_comes_from(model, tmp_path):
    write_files("pacs-photo", tmp_path, train=1, val=1, test=1)
    arguments = ["course", "--backbone", model.name, "--root", str(tmp_path), "--no-download"]
    done = CliRunner().invoke(app, [*arguments, "--only", "pacs-photo", "--only", "gtsrb"])
    assert done.exit_code == 1 and "1 bank of" in done.output and "Notebooks that wait for them: 06" in done.output
    assert CliRunner().invoke(app, [*arguments, "--only", "pacs-photo"]).exit_code == 0
    listed = CliRunner().invoke(app, [*arguments, "--sources"]).output
    assert all(f"licence: {s['licence']}; SHA-256: {s['sha256']}" in listed for s in SOURCES.values())


def test_what_is_said_of_torchvisions_sources_is_what_torchvision_does():
    import inspect
    import re

    import torchvision
    if tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 29):
        pytest.skip("`checked` names torchvision 0.29")
    for source in SOURCES.values():
        assert set(source) >= {"title", "size", "licence", "by_hand", "checked"} and len(source["fetch"]) in (1, 2)
        if kind := source["fetch"].get("torchvision"):
            known = re.findall("[0-9a-f]{32}", source["sha256"])
            code = inspect.getsource(getattr(torchvision.datasets, kind))
            assert known and all(md5 in code for md5 in known), kind
        else:  # a commit, whose files stay the same, or a branch that `checked` speaks of
            address = source["fetch"].get("url") or source["fetch"]["parquet"]
            assert re.search("[/@][0-9a-f]{40}[/.]", address) or "branch:" in source["checked"], address


def test_a_bank_that_is_not_there_names_the_command(expect_refused):
    with expect_refused("`clip-adapter-lite course --backbone RN50-quickgelu --root DIR`", FileNotFoundError):
        FeatureBank.load("pacs-cartoon", "RN50-quickgelu")
    with pytest.raises(ValueError, match="ship with the package"):
        course_banks("pocket", ".")


def test_the_pockets_features_of_the_recorded_rows_are_the_bundled_banks():
    from pathlib import Path

    from clip_adapter_lite.encoding import encode
    data = Path(__file__).parent.parent.parent / "shared/data"
    if not (data / "pacs").is_dir():
        pytest.skip("needs ../shared/data, the pictures that the bundled banks were built from")
    backbone = load_backbone("pocket", device="cpu")
    for name in ("pacs-cartoon", "grocery"):
        dataset, bank = course_dataset(name, data), FeatureBank.load(name)
        rows = range(0, len(dataset.splits["train"]), 29)
        found = encode(backbone, [dataset.splits["train"][row][0] for row in rows])
        there = bank.splits["train"].features[list(rows)].float()
        assert torch.nn.functional.cosine_similarity(found, there).min() > 0.999
    with pytest.raises((FileNotFoundError, BankError)):
        course_dataset("fashion-mnist", data)
