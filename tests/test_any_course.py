"""Whatever a course or a shared set is asked for, fetched or found: banks, or one sentence, and finished banks stay."""
import io
import json
import shutil
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import numpy
import pytest
from course_files import whole_model, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from test_any_file import bank, contents, held, kinds, names, put, quick

from clip_adapter_lite import BankError, FeatureBank, course_banks, load_backbone, push
from clip_adapter_lite import sharing as sharing_module
from clip_adapter_lite.banks import cache_place
from clip_adapter_lite.course import Course
from clip_adapter_lite.datasets import archives
from clip_adapter_lite.datasets.course import COURSE, SOURCES, course_dataset
from clip_adapter_lite.datasets.parquet import unpack_parquet
from clip_adapter_lite.sharing import places, pull_shared

QUIET = dict(progress=False, tell=lambda line: None)


def sentence(message: str) -> None:
    assert message.endswith(".") and ". " not in message and "\n" not in message, message


def result(function, *given, **options):
    """What the function returns, or None if it refuses in one sentence."""
    try:
        return function(*given, **options)
    except (ValueError, OSError) as error:
        sentence(str(error))
        return None


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small backbone, a folder with PACS's photos, and the bytes of the bank that they make."""
    folder = tmp_path_factory.mktemp("course")
    model = load_backbone(whole_model(folder / "rn"), device="cpu")
    write_files("pacs-photo", folder / "data", train=1, val=1, test=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_ADAPTER_LITE_CACHE", str(folder / "cache"))
        assert course_banks(model, folder / "data", only="pacs-photo", download=False, **QUIET).built == ["pacs-photo"]
        return model, folder / "data", cache_place("pacs-photo", model.name).read_bytes()


@pytest.fixture
def finished(made):
    """Where the finished bank of PACS's photos lies in the cache folder of a test."""
    path = cache_place("pacs-photo", made[0].name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made[2])
    return path


ODD = [None, 3, 1.5, True, b"x", [1], {}, "", "\0", "x" * 300, object()]
ONLY = {"pacs-photo": "pacs-photo", "none": (), "two": ["pacs-photo", "rsscn7"], "twice": ("pacs-photo", "pacs-photo"),
        "array": numpy.array(["pacs-photo"]), "others": ["food101"], "numbers": [1], "nested": [["pacs-photo"]],
        "number": 3, "blank": [""], "truth": True, "nothing": None}
RIGHT = {"pacs-photo", "none", "two", "twice", "array", "nothing"}


@given(st.sampled_from(sorted(ONLY)), st.sampled_from(["data", "absent", "file", "under a file", *range(len(ODD))]),
       st.sampled_from(["model", "model", "pocket", "no-such", *range(len(ODD))]), st.booleans())
@settings(quick, max_examples=80)
def test_a_course_of_anything_is_told_or_refused_and_the_finished_bank_stays(made, finished, place, only, root, backbone,
                                                                             text):
    folder = place()
    (folder / "file").write_text("mine")
    where = {"data": made[1], "absent": folder / "new", "file": folder / "file", "under a file": folder / "file/x"}
    given_root = ODD[root] if isinstance(root, int) else str(where[root]) if text else where[root]
    given_backbone = ODD[backbone] if isinstance(backbone, int) else made[0] if backbone == "model" else backbone
    found = result(course_banks, given_backbone, given_root, only=ONLY[only], download=False, **QUIET)
    good_root = root in ("data", "absent", "under a file") or isinstance(root, int) and ODD[root] in ("", "x" * 300)
    assert (found is not None) == (only in RIGHT and good_root and backbone == "model")
    if found:
        asked = {"two": ["pacs-photo", "rsscn7"], "none": list(COURSE), "nothing": list(COURSE)}.get(only, ["pacs-photo"])
        assert found.kept == ["pacs-photo"] and list(found.lacking) == [name for name in asked if name != "pacs-photo"]
        assert found.unasked == [name for name in COURSE if name not in asked]
        assert "All 13 notebooks run" not in str(found)
        for why in found.lacking.values():
            sentence(why)
    assert finished.read_bytes() == made[2] and held(folder) == {"file": b"mine"}


# ── what comes from the network ───────────────────────────────────────────────────────────────────────────────


def zip_of(*members, change=lambda info: None) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as bundle:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            change(info)
            bundle.writestr(info, data)
    return raw.getvalue()


def tar_of(*members, mode: str = "w") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as bundle:
        for name, data, *kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.linkname = len(data), "/etc/passwd" if kind else ""
            info.type = kind[0] if kind else tarfile.REGTYPE
            bundle.addfile(info, io.BytesIO(data))
    return raw.getvalue()


@cache
def pictures() -> tuple:
    """RSSCN7's pictures for one row of each class and split, as members of an archive."""
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        write_files("rsscn7", Path(folder), train=1, val=1, test=1)
        root = Path(folder) / "rsscn7"
        return tuple((f"RSSCN7-x/{path.relative_to(root / 'RSSCN7-master')}", path.read_bytes())
                     for path in sorted(root.rglob("*.jpg")))


def huge(size: int) -> bytes:
    """A tar whose only picture is said to have so many bytes."""
    info = tarfile.TarInfo("RSSCN7-x/aGrass/a001.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def encrypted(raw: bytes) -> bytes:
    mine = bytearray(raw)
    mine[6] |= 1
    mine[mine.index(b"PK\1\2") + 8] |= 1
    return bytes(mine)


@cache
def archive(kind: str) -> bytes:
    some = pictures()
    first, data = some[0]
    return {
        "zip": lambda: zip_of(*some), "tar": lambda: tar_of(*some), "tar.gz": lambda: tar_of(*some, mode="w:gz"),
        "tar.xz": lambda: tar_of(*some, mode="w:xz"), "half a zip": lambda: zip_of(*some)[:-400],
        "half a tar.gz": lambda: tar_of(*some, mode="w:gz")[:-200],
        "half a tar.xz": lambda: tar_of(*some, mode="w:xz")[:-99],
        "out of the folder": lambda: zip_of(*some, ("../../evil", b"1")),
        "to the root": lambda: tar_of(*some, ("/evil", b"")),
        "a link": lambda: tar_of(*some, ("link", b"", tarfile.SYMTYPE)),
        "a device": lambda: tar_of(*some, ("null", b"", tarfile.CHRTYPE)),
        "a link in a zip": lambda: zip_of(*some, change=lambda info: setattr(info, "external_attr", 0o120777 << 16)),
        "more than the disk": lambda: huge(10 ** 15), "a size below zero": lambda: huge(-1),
        "encrypted": lambda: encrypted(zip_of((first, data))), "a long name": lambda: zip_of((f"{'a' * 300}.jpg", data)),
        "a file where a folder is": lambda: zip_of(("RSSCN7-x", b"1"), (first, data)), "empty": lambda: zip_of(),
        "one class": lambda: zip_of((first, data)), "no pictures": lambda: zip_of(*((name, b"no") for name, _ in some)),
        "a page": lambda: b"<html>Sign in</html>", "nothing": lambda: b""}[kind]()


GOOD = {"zip", "tar", "tar.gz", "tar.xz"}
BAD = ["half a zip", "half a tar.gz", "half a tar.xz", "out of the folder", "to the root", "a link", "a device",
       "a link in a zip", "more than the disk", "a size below zero", "encrypted", "a long name",
       "a file where a folder is", "empty", "one class", "no pictures", "a page", "nothing"]


@pytest.mark.parametrize("kind", sorted(GOOD) + BAD)
def test_whatever_archive_is_at_the_address_finished_banks_stay_and_the_same_call_goes_on(made, finished, kind, tmp_path,
                                                                                         monkeypatch):
    address = tmp_path / "web" / "pictures.zip"
    address.parent.mkdir()
    address.write_bytes(archive(kind))
    monkeypatch.setitem(SOURCES["rsscn7"]["fetch"], "url", address.as_uri())
    root = tmp_path / "in" / "data"
    found = course_banks(made[0], root, only=["pacs-photo", "rsscn7"], **QUIET)
    assert found.kept == ["pacs-photo"] and finished.read_bytes() == made[2]
    assert found.built == (["rsscn7"] if kind in GOOD else [])
    for why in found.lacking.values():
        sentence(why)
        assert ("room for" in why) == (kind == "more than the disk")
    if kind not in GOOD:
        assert {path.name for path in tmp_path.iterdir()} <= {"web", "in", "cache"} and not Path("/evil").exists()
        assert [path.name for path in (tmp_path / "in").iterdir()] == ["data"]
        assert not [path for path in root.rglob("*") if ".unpacking" in path.name or path.is_symlink()]
        if kind in ("empty", "one class", "no pictures"):  # a right archive of something else
            shutil.rmtree(root)
        address.write_bytes(archive("zip"))  # the address is mended
        assert course_banks(made[0], root, only="rsscn7", **QUIET).built == ["rsscn7"]


@given(st.data())
@settings(quick, max_examples=40)
def test_an_archive_with_flipped_bytes_gives_its_pictures_or_one_sentence(place, data):
    kind = data.draw(st.sampled_from(["zip", "tar", "tar.gz", "tar.xz"]))
    raw = bytearray(archive(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    raw = raw[:data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2]))]
    folder = place()
    (folder / "x.zip").write_bytes(raw)
    result(archives.unpack, folder / "x.zip", folder / "out")
    assert {path.name for path in folder.iterdir()} <= {"x.zip", "out"}
    if kind == "zip":  # each member has a checksum
        assert {data for data in held(folder / "out").values()} <= {data for _, data in pictures()}


# ── a hub's Parquet file ──────────────────────────────────────────────────────────────────────────────────────

json_of_any_shape = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from(["info", "features", "label", "names", "x"]), inner, max_size=3),
    max_leaves=8)


def called(right: str, *odd) -> st.SearchStrategy:
    return st.sampled_from([right] * 2 * len(odd) + list(odd))


@given(called("dog", "..", "a/..", "", "/", "x" * 300, "\0", "cat"),
       called("cat.jpg", None, "..", "/", "x" * 300, "a/b.jpg", ""),
       called("photo", None, "..", "a/..", "/"), called(b"picture", None), called(None, *[{}, [], 3, {"info": 1}]))
@settings(quick, max_examples=100)
def test_a_parquet_file_of_any_names_is_unpacked_within_its_folder_or_refused(place, kind, name, domain, picture, about):
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra [course] is not installed")
    import pyarrow
    folder = place()
    about = about if about is not None else {"info": {"features": {"label": {"names": ["cat", kind]}}}}
    image = [{"bytes": picture, "path": name}] * 2
    table = pyarrow.table({"image": image, "label": [0, 1], "domain": pyarrow.array([domain] * 2, pyarrow.string())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), folder / "x.parquet")
    before = held(folder)
    done = result(lambda: unpack_parquet(str(folder / "x.parquet"), folder / "in" / "out") or True)
    after = held(folder)
    assert {path for path in after if not path.startswith("in/out/")} == set(before)
    assert [data for path, data in after.items() if path.startswith("in/out/")] == [b"picture"] * 2 * bool(done)
    assert not [path for path in folder.rglob(".unpacking*")]


def test_no_network_at_the_hub_is_one_sentence_whatever_its_library_raises(made, finished, tmp_path, monkeypatch):
    """httpx's ConnectError is no OSError."""
    import fsspec
    pytest.importorskip("pyarrow", reason="the extra [course] is not installed")

    class ConnectError(Exception):
        pass

    def nobody(*args, **options):
        raise ConnectError("[Errno -2] Name or service not known")
    monkeypatch.setattr(fsspec, "open_files", nobody)
    monkeypatch.setattr(archives.time, "sleep", lambda seconds: None)
    found = course_banks(made[0], tmp_path / "data", only=["sun18", "pacs-photo"], **QUIET)
    assert found.kept == ["pacs-photo"] and list(found.lacking) == ["sun18"]
    sentence(found.lacking["sun18"])
    assert "Name or service not known); check the network, or fetch it by hand" in found.lacking["sun18"]


def test_a_source_that_cannot_be_had_is_asked_once_for_all_its_banks(made, tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, sha256):
        asked.append(url)
        raise BankError(f"{url} has another SHA-256.")
    monkeypatch.setattr(archives, "fetch", fetch)
    four = ["pacs-art", "pacs-photo", "pacs-cartoon", "pacs-sketch"]
    found = course_banks(made[0], tmp_path / "data", only=four, **QUIET)
    assert asked == [SOURCES["pacs"]["fetch"]["url"]] and list(found.lacking) == four
    assert len(set(found.lacking.values())) == 1


def test_an_archive_that_the_user_put_there_is_kept_and_named(tmp_path, expect_refused):
    file = tmp_path / "grocery" / "master.zip"
    file.parent.mkdir()
    file.write_bytes(b"mine")
    with expect_refused(f"fetch it again (remove {file} first); by hand: dataset/ of the repository"):
        course_dataset("grocery", tmp_path, download=True)
    assert file.read_bytes() == b"mine"


def test_banks_that_wait_for_the_same_are_told_together():
    found = Course("RN50", lacking={"pacs-art": "No network.", "rsscn7": "Damaged.", "pacs-photo": "No network."})
    assert str(found).splitlines()[1:3] == ["  pacs-art, pacs-photo: No network.", "  rsscn7: Damaged."]


def test_a_full_disk_is_one_sentence_and_what_is_unpacked_again_needs_no_second_fetch(made, tmp_path, monkeypatch,
                                                                                     expect_refused):
    import errno
    address = tmp_path / "pictures.zip"
    address.write_bytes(archive("zip"))
    monkeypatch.setitem(SOURCES["rsscn7"]["fetch"], "url", address.as_uri())

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", full)
        with expect_refused("rsscn7 could not be written (No space left on device), and nothing was lost", OSError):
            course_dataset("rsscn7", tmp_path / "data", download=True)
    address.unlink()
    assert len(course_dataset("rsscn7", tmp_path / "data", download=True).splits["train"]) == 7


# ── a class's shared set ──────────────────────────────────────────────────────────────────────────────────────


@given(kinds, names, st.booleans())
@quick
def test_of_a_shared_set_with_anything_in_it_the_good_banks_are_pulled(cache, place, kind, name, asked):
    shutil.rmtree(cache, ignore_errors=True)
    folder = place()
    bank().save(folder / "good bank.safetensors")
    put(folder / f"{name}.safetensors", kind)
    before = held(folder)
    found = result(pull_shared, [name, "good bank"] if asked else (), source=folder)
    right = kind == "bank" or kind == "absent" and not asked
    pulled = {"good bank", name} if kind == "bank" else {"good bank"}
    assert (found is not None) == right
    assert held(cache) == {f"banks/none/{one}.safetensors": contents()["bank"] for one in pulled}
    assert held(folder) == before


@given(json_of_any_shape, st.sampled_from(["file", "given", "names"]))
@quick
def test_places_and_names_of_any_shape_are_taken_or_refused(place, cache, value, where):
    shutil.rmtree(cache, ignore_errors=True)
    folder = place()
    bank().save(folder / "good.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CLIP_ADAPTER_LITE_PLACES", raising=False)
        patch.setattr(sharing_module, "parsed", lambda text: value)
        if where == "file":
            listed = result(places)
            assert (listed is not None) == (isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value))
            assert listed in (None, value)
            result(pull_shared)
        elif where == "given":
            result(pull_shared, source=value)
        else:
            result(pull_shared, value, source=str(folder))
        assert result(pull_shared, "good", source=[folder]) == [cache / "banks/none/good.safetensors"]
    assert FeatureBank.load("good", "none").hash == bank().hash and held(folder) == {"good.safetensors": contents()["bank"]}


def test_a_set_is_one_call_from_a_path_or_a_name(cache, tmp_path):
    push(bank(), tmp_path / "set")
    assert pull_shared("toy", source=tmp_path / "set") == pull_shared(source=[tmp_path / "set"])
