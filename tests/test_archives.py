"""Fetching and unpacking: all or nothing, and nothing outside the folder."""
import errno
import hashlib
import io
import tarfile
import zipfile
from urllib.error import HTTPError, URLError

import pytest

from clip_adapter_lite.datasets import TABLE, archives, load_dataset
from clip_adapter_lite.datasets.archives import fetch, unpack

BYTES = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """What is waited between tries, without waiting."""
    waited = []
    monkeypatch.setattr(archives.time, "sleep", waited.append)
    return waited


@pytest.fixture
def place(tmp_path):
    """A folder to unpack into, beside which nothing may appear."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def zipped(path, **members: bytes):
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in members.items():
            bundle.writestr(name, data)
    return path


def tarred(path, *members, mode="w"):
    """members: (name, bytes), or a TarInfo without data."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


# ── unpacking ─────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("suffix, mode", [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.xz", "w:xz")])
def test_a_tar_is_unpacked_whatever_its_name(suffix, mode, tmp_path, place):
    members = (info("a", tarfile.DIRTYPE), ("a/b c/1.jpg", BYTES), ("a/2.jpg", b""))
    for path in (tmp_path / f"x{suffix}", tmp_path / "plain.tar.gz"):  # ImageNetV2's .tar.gz is not compressed
        tarred(path, *members, mode=mode if path.name[0] == "x" else "w")
        unpack(path, place / path.name)
        assert files(place / path.name) == {"a/b c/1.jpg", "a/2.jpg"}
        assert (place / path.name / "a/b c/1.jpg").read_bytes() == BYTES


def test_a_zip_is_unpacked_beside_its_place_and_moved_there(tmp_path, place, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "another disk"))  # a rename would not reach from there
    unpack(zipped(tmp_path / "x.zip", **{"a/1.jpg": BYTES, "b.txt": b"b"}), place)
    assert files(place) == {"a/1.jpg", "b.txt"} and (place / "a/1.jpg").read_bytes() == BYTES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "\\evil"])
def test_a_zip_that_leaves_the_folder_is_refused_and_leaves_nothing(name, tmp_path, place, expect_refused):
    path = zipped(tmp_path / "x.zip", **{"good": b"1", name: b"2"})
    with expect_refused(f"is not safe: its member '{name}' would be written outside the folder"):
        unpack(path, place)
    assert files(tmp_path) == {"x.zip"} and list(place.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil-clip-adapter"])
def test_a_tar_that_leaves_the_folder_is_refused_and_leaves_nothing(name, tmp_path, place, expect_refused):
    path = tarred(tmp_path / "x.tar", ("good", b"1"), (name, b"2"))
    with expect_refused("would be written outside the folder"):
        unpack(path, place)
    assert files(tmp_path) == {"x.tar"} and list(place.iterdir()) == []


@pytest.mark.parametrize("kind, target", [(tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, ".."), (tarfile.SYMTYPE, "good"),
                                          (tarfile.LNKTYPE, "../x.tar"), (tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, "")])
def test_links_and_devices_in_a_tar_are_refused(kind, target, tmp_path, place, expect_refused):
    path = tarred(tmp_path / "x.tar", ("good", b"1"), info("link", kind, target), ("link/evil", b"2"))
    with expect_refused("its member 'link' is a link or a device"):
        unpack(path, place)
    assert list(place.iterdir()) == []


def test_a_link_in_a_zip_is_refused(tmp_path, place, expect_refused):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    with expect_refused("its member 'link' is a link or a device"):
        unpack(tmp_path / "x.zip", place)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(kind, tmp_path, place, expect_refused):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(path, **{"a/1.jpg": BYTES, "a/2.jpg": BYTES})
        raw = bytearray(path.read_bytes())
        raw[60:80] = bytes(20)  # in the first member's data: its checksum no longer fits
    else:
        tarred(path, *((f"a/{n}.jpg", hashlib.sha256(bytes([n])).digest() * 999) for n in range(9)), mode="w:gz")
        raw = path.read_bytes()[:-200]
    path.write_bytes(raw)
    with expect_refused("is damaged"):
        unpack(path, place)
    assert list(place.iterdir()) == []


def test_what_is_no_archive_is_refused(tmp_path, place, expect_refused):
    (tmp_path / "x.zip").write_text("<html>Sign in</html>")
    with expect_refused("is neither a zip nor a tar archive"):
        unpack(tmp_path / "x.zip", place)


def test_nothing_is_overwritten(tmp_path, place, expect_refused):
    (place / "a").mkdir()
    path = zipped(tmp_path / "x.zip", **{"a/1.jpg": BYTES, "b/1.jpg": BYTES})
    with expect_refused(f"would overwrite {place / 'a'}"):
        unpack(path, place)
    assert files(place) == set()


# ── fetching ──────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def url(tmp_path) -> str:
    (tmp_path / "source.bin").write_bytes(BYTES)
    return (tmp_path / "source.bin").as_uri()


def test_a_file_is_fetched_checked_and_kept(url, tmp_path, monkeypatch):
    right = hashlib.sha256(BYTES).hexdigest()
    path = fetch(url, tmp_path / "new/x.bin", right)
    assert path == tmp_path / "new/x.bin" and path.read_bytes() == BYTES and files(tmp_path / "new") == {"x.bin"}
    monkeypatch.setattr(archives, "urlopen", lambda *_, **__: pytest.fail("asked for the network"))
    assert fetch(url, path, right) == fetch(url, path) == path


def test_a_file_with_another_hash_is_fetched_again(url, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"half")
    assert fetch(url, tmp_path / "x.bin", hashlib.sha256(BYTES).hexdigest()).read_bytes() == BYTES


def test_a_wrong_hash_is_refused_and_nothing_kept(url, tmp_path, expect_refused):
    with expect_refused(f"has SHA-256 {hashlib.sha256(BYTES).hexdigest()[:12]}… instead of 000000000000…"):
        fetch(url, tmp_path / "new/x.bin", "0" * 64)
    assert files(tmp_path / "new") == set()


class Answer(io.BytesIO):
    """What urlopen gives: bytes, and how many there should be."""
    def __init__(self, data: bytes, size: int):
        super().__init__(data)
        self.headers = {"Content-Length": str(size)}


def test_a_connection_that_closes_early_or_fails_is_tried_again(tmp_path, monkeypatch, no_waiting):
    answers = [URLError("down"), Answer(BYTES[:99], len(BYTES)), Answer(BYTES, len(BYTES))]

    def urlopen(request, timeout):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(archives, "urlopen", urlopen)
    assert fetch("https://here/x", tmp_path / "x").read_bytes() == BYTES
    assert no_waiting == [2, 4] and not answers


@pytest.mark.parametrize("error, tries, said", [
    (URLError("[Errno -2] Name or service not known."), 3, "Name or service not known"),
    (TimeoutError("timed out"), 3, "timed out"),
    (HTTPError("https://here/x", 503, "Busy", None, None), 3, "HTTP Error 503: Busy"),
    (HTTPError("https://here/x", 404, "Not Found", None, None), 1, "HTTP Error 404: Not Found"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
])
def test_a_failure_says_what_to_do_and_leaves_nothing(error, tries, said, tmp_path, monkeypatch, expect_refused):
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        raise error

    monkeypatch.setattr(archives, "urlopen", urlopen)
    with expect_refused(said):
        fetch("https://here/x", tmp_path / "new/x")
    with pytest.raises(archives.BankError, match="check the network, or fetch it elsewhere and put it at .*new/x"):
        fetch("https://here/x", tmp_path / "new/x")
    assert len(asked) == 2 * tries and files(tmp_path / "new") == set()


def test_imagenet_a_is_fetched_unpacked_and_read(tmp_path, monkeypatch, expect_refused):
    source = tarred(tmp_path / "imagenet-a.tar", ("imagenet-a/README.txt", b""), ("imagenet-a/n01498041/0.jpg", BYTES),
                    ("imagenet-a/n01531178/0.jpg", BYTES))
    monkeypatch.setitem(TABLE["imagenet_a"], "archive", {
        "url": source.as_uri(), "sha256": hashlib.sha256(source.read_bytes()).hexdigest(), "into": "imagenet-adversarial"})
    monkeypatch.setitem(TABLE["imagenet_a"], "pictures", 2)
    data = load_dataset("imagenet_a", tmp_path / "data", download=True)
    assert data.classnames == ("stingray", "goldfinch") and len(data.splits["test"]) == 2
    monkeypatch.setitem(TABLE["imagenet_a"]["archive"], "sha256", "0" * 64)
    with expect_refused("was changed or damaged on the way"):
        load_dataset("imagenet_a", tmp_path / "other", download=True)
