"""Banks to and from others: a Hugging Face repository, a bucket, a web address or a folder, checked
by SHA-256.

A bank is a few megabytes and carries no pictures, so a class of students gets real CLIP's features
without the images.
"""
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from shlex import quote
from urllib.parse import urlsplit

from .banks import FeatureBank, cache_place
from .errors import BankError, one_line
from .files import cache_folder, file_hash, located, may_write, parsed, unwritten
from .progress import bar
from .values import names_given, shown

WEB = ("http://", "https://")
CHUNK = 1 << 20  # bytes


def push(bank: FeatureBank | str | Path, dest: str | Path, *, backbone: str = "pocket",
         force: bool = False
         ) -> tuple[str, str]:
    """Copy a bank (or the one of that name or path) to where others can pull it; returns its
    address and its SHA-256.

    dest: a file ending in .safetensors, or a folder that gets `NAME.safetensors`: a path,
    `hf://datasets/owner/repo` (which must exist, after `hf auth login`), or whatever fsspec can
    write to. Beside it goes `NAME.safetensors.sha256`.
    Raises BankError if another bank is there, unless with `force`; OSError if it cannot be written.
    """
    if isinstance(bank, FeatureBank):
        name = bank.dataset
    else:
        name = Path(bank).name.removesuffix(".safetensors")
        bank = FeatureBank.load(bank, backbone)
    url = str(dest)
    if not url.endswith(".safetensors"):
        url = f"{url.rstrip('/')}/{name}.safetensors"
    if url.startswith(WEB):
        raise ValueError(f"{url} can only be read from; push to a folder, hf://datasets/owner/repo "
                         "or a bucket.")
    with tempfile.TemporaryDirectory() as folder:
        made = bank.save(Path(folder) / "bank.safetensors")
        digest = file_hash(made)
        try:
            fs, path = _place(url)
            there = fs.exists(path)
            if "file" in fs.protocol and not force:
                may_write(f"{path}.sha256", _is_record, "checksum")
            if not there or force:
                if "file" in fs.protocol:
                    bank.save(path, force=force)  # renames, so that nobody reads half a file
                else:
                    fs.put_file(str(made), path)
                fs.pipe_file(f"{path}.sha256", f"{digest}  {PurePosixPath(path).name}\n".encode())
        except Exception as error:  # every file system has its own
            why = one_line(error.__cause__ or error)
            raise OSError(f"{url} could not be written ({why}); check the network, "
                          "that the repository or bucket exists, and that you may write there "
                          "(Hugging Face: `hf auth login`).") from error
    if there and not force and (_recorded(url) or _hash_at(url)) != digest:
        raise BankError(f"{url} is there already and is another bank; push to another address, which "
                        "may end in a name of its own, or replace it with --force (force=True).")
    return url, digest


def pull(source: str | Path, *, name: str | None = None, sha256: str | None = None, force: bool = False,
         progress: bool = False) -> Path:
    """Fetch a bank into the cache folder, where `FeatureBank.load(name, backbone)` finds it;
    returns the path.

    source: a bank's path or address (`hf://datasets/owner/repo/NAME.safetensors`, `https://…`,
    whatever fsspec can open), or a folder with one bank. name: what to call it; the file's name by
    default. sha256: what the file must have; by default what `SOURCE.sha256` says, if that is
    there. The tensors are checked against the bank's own hash in any case.
    Raises BankError if a hash does not match, or if another bank has that name, unless with
    `force`; FileNotFoundError; OSError if the source cannot be read. Nothing is left behind then.
    """
    url = _only_bank(str(source))
    within = urlsplit(url).path if url.startswith(WEB) else url
    name = name or Path(within).name.removesuffix(".safetensors")
    expected = _digest(sha256, "sha256 (--sha256)") if sha256 else None
    folder = cache_folder() / "banks"
    partial = folder / f"{os.getpid()}.partial"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritten(folder, error, "pull again") from error
        found, expected = _fetch(url, partial, progress), expected or _recorded(url)
        if expected and found != expected:
            raise BankError(f"{url} has the SHA-256 {found[:12]}… where {expected[:12]}… was "
                            "expected, so it is another file or was changed on the way; pull "
                            "again, or ask whoever shared it.")
        try:
            bank = FeatureBank.load(partial)
        except BankError as error:
            raise BankError(str(error).replace(str(partial), url)) from error
        place = cache_place(name, bank.backbone, "give another name with --name (name=…)")
        if place.exists() and not force and file_hash(place) != found:
            raise BankError(f"{place} is there already and is another bank; pull under another "
                            "--name (name=…), or replace it with --force (force=True).")
        place.parent.mkdir(exist_ok=True)
        return partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def places(given: Sequence[str | Path] | str | Path | None = None) -> list[str]:
    """The folders that shared banks are looked for in: those given, else what
    $CLIP_ADAPTER_LITE_PLACES names (with spaces between), else the package's own list, which is
    empty today. Raises ValueError for what are no addresses.
    """
    if isinstance(given, (list, tuple, Path)):
        given = [str(one) if isinstance(one, Path) else one
                 for one in ([given] if isinstance(given, Path) else given)]
    if known := names_given(given, "places of shared banks"):
        return known
    if named := os.environ.get("CLIP_ADAPTER_LITE_PLACES", "").split():
        return named
    listed = Path(__file__).with_name("places.json")
    known = parsed(listed.read_text(encoding="utf-8"))
    if not isinstance(known, list) or not all(isinstance(one, str) and one.strip() for one in known):
        raise ValueError(f"{listed} must hold a list of addresses, as [\"hf://datasets/OWNER/REPO\"]; "
                         f"got {shown(known)}.")
    return known


def pull_shared(names: Sequence[str] | str = (), *,
                source: Sequence[str | Path] | str | Path | None = None,
                force: bool = False, progress: bool = False) -> list[Path]:
    """`pull` the banks of these names, or all, from the first place that has each; returns the
    paths.

    source: a folder, repository or bucket, or several; by default those that
    $CLIP_ADAPTER_LITE_PLACES names (with spaces between), else the package's own list, which is
    empty today. Of a web address, which cannot be listed, banks are had by name only.
    Where a bank that is there already differs, or one is damaged, the others are pulled before the
    error is raised. Raises FileNotFoundError, naming the places, for a name that none has;
    ValueError for what are no names or addresses; OSError if a place cannot be read.

    `cal.pull_shared(source="hf://datasets/OWNER/REPO")`
    """
    names, known, unlisted, wrong = names_given(names, "names"), places(source), [], []
    for name in names:
        if "/" in name or "\\" in name:
            raise ValueError(f"'{name}' is an address, and no bank's name; give it to pull, or a name "
                             "alone.")
    if not known:
        raise FileNotFoundError("No place of shared banks is known; name one with --from (source=…) "
                                "or in $CLIP_ADAPTER_LITE_PLACES, or give a bank's whole address.")
    found: dict[str, str] = {}
    for place in known:
        try:
            there = [f"{place.rstrip('/')}/{name}.safetensors" for name in names] if (
                place.startswith(WEB)) else _banks_in(place)
        except OSError as error:
            unlisted.append(error)
            continue
        for url in there:
            found.setdefault(PurePosixPath(url).name.removesuffix(".safetensors"), url)
    pulled = []
    for name in names or sorted(found):
        try:
            if name not in found:
                raise unlisted[0] if unlisted else FileNotFoundError(
                    f"No bank '{name}' in {', '.join(known)}; there: "
                    f"{', '.join(sorted(found)) or 'none'}.")
            pulled.append(pull(found[name], force=force, progress=progress))
        except (OSError, ValueError) as error:
            wrong.append(error)
    if wrong or unlisted and not names:
        raise (wrong or unlisted)[0]
    if not pulled:
        raise FileNotFoundError(f"There are no banks in {', '.join(known)} (a web address cannot be "
                                "listed); give their names, or another place.")
    return pulled


def _fetch(url: str, target: Path, progress: bool) -> str:
    """Write what is at `url` to a file; returns its SHA-256."""
    from rich.progress import DownloadColumn
    digest = hashlib.sha256()
    with bar(DownloadColumn(), shown=progress) as display:
        task = display.add_task(PurePosixPath(url).name, total=None, visible=False)
        chunks = _chunks(url, lambda size: display.update(task, total=size, visible=True))
        try:
            with target.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                    display.advance(task, len(chunk))
        except OSError as error:
            if error.errno is None:  # our own sentence, from `_chunks`
                raise
            raise OSError(f"{target.parent} could not be written to ({one_line(error)}); free some "
                          "space there and pull again.") from error
    return digest.hexdigest()


def _chunks(url: str, tell_size: Callable[[int | None], None] = lambda size: None) -> Iterator[bytes]:
    """The bytes at an address. Raises FileNotFoundError, or OSError for whatever else is wrong, as
    one sentence.
    """
    try:
        with _open(url) as file:
            tell_size(getattr(file, "length", None) or getattr(file, "size", None))
            while chunk := file.read(CHUNK):
                yield chunk
    except FileNotFoundError as error:
        login = ", or it needs a login (Hugging Face: `hf auth login`)" if "://" in url else ""
        raise FileNotFoundError(f"There is no {url}{login}; check the address.") from error
    except ImportError as error:
        raise OSError(f"{url} needs a package that is not installed ({one_line(error)}); install "
                      "it.") from error
    except Exception as error:  # every file system has its own
        raise OSError(f"{url} could not be read ({one_line(error)}); check the network and the "
                      "address, or ask for the file and pull it from a folder.") from error


def _place(url: str):
    """The file system of an address, and the path there; a path without :// is one of this
    machine's, whatever signs it holds.
    """
    import fsspec
    if "://" in url:
        return fsspec.core.url_to_fs(url)
    return fsspec.filesystem("file"), str(located(url).absolute())


def _open(url: str):
    if not url.startswith(WEB):
        fs, path = _place(url)
        return fs.open(path, "rb")
    from urllib.error import HTTPError
    from urllib.request import urlopen  # fsspec's own needs another package for this
    try:
        return urlopen(url, timeout=60)
    except HTTPError as error:
        if error.code in (403, 404, 410):  # a bucket without listing says 403 of what is not there
            raise FileNotFoundError(url) from error
        raise


def _only_bank(url: str) -> str:
    """The address of a bank: `url` itself, or the one bank in that folder."""
    if url.startswith(WEB) or url.endswith(".safetensors"):
        return url
    found = _banks_in(url)
    if len(found) != 1:
        names = ", ".join(PurePosixPath(p).name for p in found[:20]) or "none"
        raise BankError(f"{url} holds {len(found)} banks ({names}); give the address of one, or all "
                        f"of them: `clip-adapter-lite pull --from {quote(url)}`.")
    return found[0]


def _banks_in(url: str) -> list[str]:
    """The addresses of the banks in a folder."""
    try:
        fs, path = _place(url)
        found = sorted(p for p in fs.ls(path, detail=False) if p.endswith(".safetensors"))
    except Exception as error:
        raise OSError(f"{url} could not be listed ({one_line(error)}); check the network, and give "
                      "the address of a bank, which ends in .safetensors, or of a folder.") from error
    return [p if "file" in fs.protocol else fs.unstrip_protocol(p) for p in found]


def _recorded(url: str) -> str | None:
    """The SHA-256 that the file beside a bank gives; None if there is none."""
    parts = urlsplit(url)
    web = url.startswith(WEB)
    beside = parts._replace(path=f"{parts.path}.sha256").geturl() if web else f"{url}.sha256"
    try:
        words = next(_chunks(beside), b"").decode(errors="replace").split()
    except FileNotFoundError:
        return None
    return _digest(words[0] if words else "", beside)


def _is_record(path: Path) -> bool:
    return re.match("[0-9a-fA-F]{64}", path.read_text(encoding="utf-8", errors="replace")) is not None


def _hash_at(url: str) -> str:
    """SHA-256 of what lies at an address."""
    digest = hashlib.sha256()
    for chunk in _chunks(url):
        digest.update(chunk)
    return digest.hexdigest()


def _digest(text: str, where: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise ValueError(f"{where} must be a SHA-256, 64 hexadecimal digits; got '{text[:80]}'.")
    return text.lower()
