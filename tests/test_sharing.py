"""Banks to and from others: every way there and back, hashes that must match, and one sentence for what goes wrong."""
import errno
import hashlib
import http.server
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_adapter_lite import FeatureBank, pull, push
from clip_adapter_lite.sharing import places, pull_shared

NAME = "cats.safetensors"


@pytest.fixture
def bank(toy_bank):
    return toy_bank(dataset="cats", backbone="RN50-quickgelu", meta={"protocol": "as given"})


@pytest.fixture
def other(toy_bank):
    return toy_bank(dataset="cats", backbone="RN50-quickgelu", seed=9)


@pytest.fixture
def place(cache):
    """Where the bank belongs once it is pulled."""
    return cache / "banks/RN50-quickgelu" / NAME


class FakeHub(MemoryFileSystem):
    """Hugging Face's file system as far as fsspec's interface goes; only the repository me/banks is there."""
    protocol, store, pseudo_dirs, cachable = ("hf",), {}, [""], False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("hf://").strip("/")

    def unstrip_protocol(self, name):
        return f"hf://{name.strip('/')}"

    def _open(self, path, mode="rb", **options):
        if not path.startswith("/datasets/me/banks/"):
            raise FileNotFoundError(f"404 Client Error.\n\nRepository Not Found for url: {path}.\nPlease log in.")
        return super()._open(path, mode, **options)


@pytest.fixture(autouse=True)
def stores(monkeypatch):
    """Empty stores behind memory:// and hf://; no test reaches a network."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", FakeHub)
    for kind in (MemoryFileSystem, FakeHub):
        monkeypatch.setattr(kind, "store", {})
        monkeypatch.setattr(kind, "pseudo_dirs", [""])


@pytest.fixture
def web(tmp_path):
    """A web server of this machine: (its folder, its address)."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if "forbidden" in self.path:
                return self.send_error(403)
            return self.send_error(500) if "broken" in self.path else super().do_GET()

    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ── there and back ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dest", ["{tmp}/shared", "{tmp}/shared/", f"{{tmp}}/shared/{NAME}", "file://{tmp}/shared",
                                  "memory://shared", f"memory://shared/deep/{NAME}", "hf://datasets/me/banks",
                                  f"hf://datasets/me/banks/RN50/{NAME}"])
def test_a_pushed_bank_is_pulled_to_where_it_is_found_by_name(bank, dest, tmp_path, place, cache):
    url, digest = push(bank, dest.format(tmp=tmp_path))
    assert url.endswith(f"/{NAME}")
    assert pull(url) == place
    assert files(cache) == [f"banks/RN50-quickgelu/{NAME}"]
    again = FeatureBank.load("cats", "RN50-quickgelu")
    assert (again.hash, again.meta, again.classnames) == (bank.hash, bank.meta, bank.classnames)
    assert sha(place) == digest == sha(bank.save(tmp_path / "b.safetensors"))


def test_the_hash_lies_beside_the_bank_as_sha256sum_writes_it(bank, tmp_path):
    url, digest = push(bank, tmp_path / "shared")
    assert files(tmp_path / "shared") == [NAME, f"{NAME}.sha256"]
    assert Path(f"{url}.sha256").read_text() == f"{digest}  {NAME}\n" and sha(Path(url)) == digest


def test_a_bank_may_be_pushed_by_name_or_path(bank, place, tmp_path):
    bank.save(place)
    by_name, _ = push("cats", tmp_path / "one", backbone="RN50-quickgelu")
    by_path, _ = push(place.rename(place.with_name("dogs.safetensors")), tmp_path / "two")
    assert (Path(by_name).name, Path(by_path).name) == (NAME, "dogs.safetensors")
    assert sha(Path(by_name)) == sha(Path(by_path))


@pytest.mark.parametrize("source", ["{tmp}/shared", "memory://shared", "hf://datasets/me/banks"])
def test_a_folder_with_one_bank_is_enough(bank, other, source, tmp_path, place, expect_refused):
    folder = source.format(tmp=tmp_path)
    push(bank, folder)
    assert pull(folder) == place and FeatureBank.load(place).hash == bank.hash
    push(other, f"{folder}/dogs.safetensors")
    with expect_refused(f"holds 2 banks ({NAME}, dogs.safetensors); give the address of one"):
        pull(folder)


@pytest.mark.parametrize("query", ["", "?download=true&x=a/b"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_bank_from_a_web_address(bank, web, place, query, beside):
    folder, address = web
    push(bank, folder)
    if not beside:
        (folder / f"{NAME}.sha256").unlink()
    assert pull(f"{address}/{NAME}{query}") == place
    assert FeatureBank.load(place).hash == bank.hash


def test_a_bank_may_be_given_another_name(bank, tmp_path, cache):
    url, _ = push(bank, tmp_path)
    assert pull(url, name="mine") == cache / "banks/RN50-quickgelu/mine.safetensors"
    assert FeatureBank.load("mine", "RN50-quickgelu").hash == bank.hash


# ── hashes ────────────────────────────────────────────────────────────────────────────────────────────────────


def flip(path: Path, at: int):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_file_that_is_not_what_was_pushed_is_refused(bank, tmp_path, cache, expect_refused):
    url, digest = push(bank, tmp_path / "shared")
    flip(Path(url), -1)
    with expect_refused(f"{url} has the SHA-256 {sha(Path(url))[:12]}… where {digest[:12]}… was expected"):
        pull(url)
    assert files(cache) == []


def test_a_tampered_bank_is_refused_without_a_hash_beside_it_too(bank, tmp_path, cache, expect_refused):
    url, _ = push(bank, tmp_path / "shared")
    Path(f"{url}.sha256").unlink()
    flip(Path(url), -1)
    with expect_refused(f"{url}: the tensors do not match the recorded hash"):
        pull(url)
    Path(url).write_bytes(Path(url).read_bytes()[:2000])
    with expect_refused(f"{url} is not a complete feature bank"):
        pull(url)
    assert files(cache) == []


def test_the_hash_that_is_given_counts_more_than_the_one_beside(bank, tmp_path, place, cache, expect_refused):
    url, digest = push(bank, tmp_path / "shared")
    with expect_refused("where 000000000000… was expected"):
        pull(url, sha256="0" * 64)
    assert files(cache) == []
    Path(f"{url}.sha256").write_text("nonsense")
    assert pull(url, sha256=digest.upper()) == place


@pytest.mark.parametrize("text", ["", "<html>Sign in</html>", "12345"])
def test_a_hash_that_is_none_is_refused(bank, tmp_path, cache, text, expect_refused):
    url, _ = push(bank, tmp_path / "shared")
    Path(f"{url}.sha256").write_text(text)
    with expect_refused(f"{url}.sha256 must be a SHA-256, 64 hexadecimal digits", ValueError):
        pull(url)
    with expect_refused("sha256 (--sha256) must be a SHA-256", ValueError):
        pull(url, sha256=text or "1")
    assert files(cache) == []


# ── what is there already ─────────────────────────────────────────────────────────────────────────────────────


def test_another_bank_of_that_name_is_kept_unless_forced(bank, other, tmp_path, place, cache, expect_refused):
    other.save(place)
    url, digest = push(bank, tmp_path / "shared")
    with expect_refused(f"{place} is there already and is another bank"):
        pull(url)
    assert FeatureBank.load(place).hash == other.hash and files(cache) == [f"banks/RN50-quickgelu/{NAME}"]
    pull(url, force=True)
    assert sha(place) == digest
    pull(url)  # the same again is no other bank
    assert sha(place) == digest


@pytest.mark.parametrize("dest", ["{tmp}/shared", "memory://shared", "hf://datasets/me/banks"])
def test_another_bank_that_was_shared_is_kept_unless_forced(bank, other, dest, tmp_path, place, expect_refused):
    folder = dest.format(tmp=tmp_path)
    url, digest = push(bank, folder)
    assert push(bank, folder) == (url, digest)
    with expect_refused(f"{url} is there already and is another bank"):
        push(other, folder)
    pull(url)
    assert FeatureBank.load(place).hash == bank.hash
    push(other, folder, force=True)
    pull(url, force=True)
    assert FeatureBank.load(place).hash == other.hash


def test_a_bundled_banks_name_is_not_taken(toy_bank, tmp_path, cache, expect_refused):
    url, _ = push(toy_bank(dataset="rsscn7", backbone="pocket"), tmp_path)
    with expect_refused("'rsscn7' is the name of a bundled bank, which comes first"):
        pull(url)
    assert pull(url, name="mine") == cache / "banks/pocket/mine.safetensors"


@pytest.mark.parametrize("backbone, name", [("../../../evil", None), ("..", None), ("/tmp/evil", None), ("a\\b", None),
                                            ("", None), ("RN50", "../evil"), ("RN50", "/tmp/evil")])
def test_no_bank_leaves_the_cache_folder(toy_bank, backbone, name, tmp_path, cache, expect_refused):
    url, _ = push(toy_bank(backbone=backbone), tmp_path / "shared")
    before = files(tmp_path)
    with expect_refused("cannot be part of a file's name"):
        pull(url, name=name)
    assert files(tmp_path) == before


# ── networks, disks and addresses ─────────────────────────────────────────────────────────────────────────────

DEAD = "http://127.0.0.1:9"  # nobody listens there


@pytest.mark.parametrize("source", [f"{DEAD}/{NAME}", f"hf://datasets/me/banks/{NAME}", "hf://datasets/me/banks"])
def test_a_dead_network_is_one_sentence(bank, source, monkeypatch, cache, expect_refused):
    import huggingface_hub
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", huggingface_hub.HfFileSystem)  # the real one
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", DEAD)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    with expect_refused(f"{source} could not be", OSError):
        pull(source)
    with expect_refused("Connection refused", OSError):
        pull(source)
    if source.startswith("hf"):
        with expect_refused("could not be written ([Errno 111] Connection refused); check the network", OSError):
            push(bank, "hf://datasets/me/banks")
    assert files(cache) == []


@pytest.mark.parametrize("source, error, fragment", [
    ("{tmp}/none.safetensors", FileNotFoundError, "There is no {tmp}/none.safetensors"),
    ("{tmp}/none", OSError, "{tmp}/none could not be listed"),
    ("{web}/none.safetensors", FileNotFoundError, "There is no {web}/none.safetensors, or it needs a login"),
    ("{web}/forbidden.safetensors", FileNotFoundError, "or it needs a login"),
    ("{web}/broken.safetensors", OSError, "{web}/broken.safetensors could not be read (HTTP Error 500"),
    ("hf://datasets/you/banks/x.safetensors", FileNotFoundError, "needs a login (Hugging Face: `hf auth login`)"),
    ("nosuch://a/x.safetensors", OSError, "could not be read (Protocol not known: nosuch"),
])
def test_what_cannot_be_read_is_one_sentence(source, error, fragment, web, tmp_path, cache, expect_refused):
    fill = {"tmp": tmp_path, "web": web[1]}
    with expect_refused(fragment.format(**fill), error):
        pull(source.format(**fill))
    assert files(cache) == []


def test_a_store_without_its_package_says_which(monkeypatch, expect_refused):
    def absent(name):
        raise ImportError("Install s3fs to access S3")
    monkeypatch.setattr("fsspec.core.get_filesystem_class", absent)
    with expect_refused("s3://a/x.safetensors needs a package that is not installed (Install s3fs to access S3)", OSError):
        pull("s3://a/x.safetensors")


@pytest.mark.parametrize("dest, fragment", [
    ("hf://datasets/you/banks", "could not be written (404 Client Error; Repository Not Found"),
    ("nosuch://a", "could not be written (Protocol not known: nosuch"),
    ("/dev/null/shared", "could not be written (")])
def test_what_cannot_be_written_is_one_sentence(bank, dest, fragment, expect_refused):
    with expect_refused(fragment, OSError):
        push(bank, dest)


def test_the_web_is_only_read_from(bank, expect_refused):
    with expect_refused(f"{DEAD}/{NAME} can only be read from", ValueError):
        push(bank, DEAD)


def test_a_full_disk_leaves_nothing_behind(bank, tmp_path, cache, monkeypatch, expect_refused):
    url, _ = push(bank, tmp_path / "shared")
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            self.file.write(chunk[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest, **options:
                        Full(real(self, mode)) if mode == "wb" else real(self, mode, *rest, **options))
    with expect_refused("banks could not be written to ([Errno 28] No space left on device); free some space", OSError):
        pull(url)
    assert files(cache) == []


def test_a_failing_push_leaves_the_old_bank(bank, other, monkeypatch, tmp_path, place, expect_refused):
    url, digest = push(bank, tmp_path / "shared")

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureBank, "save", lambda self, path, save=FeatureBank.save, **options:
                      full() if "shared" in str(path) else save(self, path, **options))
        with expect_refused("shared/cats.safetensors could not be written ([Errno 28]", OSError):
            push(other, tmp_path / "shared", force=True)
    pull(url)
    assert sha(place) == digest


# ── a class's shared set ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shared(toy_bank, tmp_path):
    """A folder with the banks cats and dogs of one backbone, and their hashes."""
    banks = {name: toy_bank(dataset=name, backbone="RN50-quickgelu", seed=n) for n, name in enumerate(("cats", "dogs"))}
    for bank in banks.values():
        push(bank, tmp_path / "set")
    return str(tmp_path / "set"), banks


def test_a_shared_set_is_one_call_and_again_it_changes_nothing(shared, cache, monkeypatch):
    place, banks = shared
    for _ in range(2):
        assert [path.stem for path in pull_shared(source=place)] == ["cats", "dogs"]
    assert all(FeatureBank.load(name, "RN50-quickgelu").hash == bank.hash for name, bank in banks.items())
    monkeypatch.setenv("CLIP_ADAPTER_LITE_PLACES", f"{place}/nowhere {place}")
    assert [path.stem for path in pull_shared(["dogs"])] == ["dogs"], "the second place has it"
    for names in ([], ["cows"]):
        with pytest.raises(OSError, match="nowhere could not be listed"):
            pull_shared(names)
    assert places() == [f"{place}/nowhere", place] and places("x") == ["x"]
    monkeypatch.delenv("CLIP_ADAPTER_LITE_PLACES")
    assert places() == []


def test_from_a_web_address_banks_are_had_by_name(web, shared, cache):
    import shutil
    folder, address = web
    shutil.copytree(shared[0], folder, dirs_exist_ok=True)
    assert [path.stem for path in pull_shared(["dogs"], source=address)] == ["dogs"]
    with pytest.raises(FileNotFoundError, match="a web address cannot be listed"):
        pull_shared(source=address)


def test_one_bad_bank_of_a_set_does_not_keep_the_others(shared, cache, expect_refused):
    place, _ = shared
    flip(Path(place, "cats.safetensors"), -1)
    with expect_refused("cats.safetensors has the SHA-256"):
        pull_shared(source=place)
    assert files(cache) == ["banks/RN50-quickgelu/dogs.safetensors"]


def test_a_place_or_a_name_that_is_not_known_is_one_sentence(shared, expect_refused):
    with expect_refused("No place of shared banks is known; name one with --from", FileNotFoundError):
        pull_shared(["cats"])
    with expect_refused("No bank 'cows' in", FileNotFoundError):
        pull_shared(["cows"], source=shared[0])


def test_the_command_pulls_a_class_its_banks(shared, cache, monkeypatch):
    from typer.testing import CliRunner

    from clip_adapter_lite.cli.app import app
    done = CliRunner().invoke(app, ["pull", "--from", shared[0]])
    assert done.exit_code == 0 and done.output.count("Pulled FeatureBank") == 2
    monkeypatch.setenv("CLIP_ADAPTER_LITE_PLACES", shared[0])
    assert CliRunner().invoke(app, ["pull", "dogs"]).output.count("Pulled FeatureBank('dogs'") == 1
    assert CliRunner().invoke(app, ["pull"]).output.count("Pulled FeatureBank") == 2
