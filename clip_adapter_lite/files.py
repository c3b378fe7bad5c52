"""Files and folders: written whole or not at all, known by their hash."""
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from .errors import one_line
from .values import shown

BUNDLED = Path(__file__).parent / "bundled"


def cache_folder() -> Path:
    """Where built and pulled banks live: $CLIP_ADAPTER_LITE_CACHE, else ~/.cache/clip-adapter-lite."""
    return located(os.environ.get("CLIP_ADAPTER_LITE_CACHE", "~/.cache/clip-adapter-lite"))


def located(path: str | Path) -> Path:
    """The path with ~ and ~user as home folders; a name that only begins with ~ stays as it is.
    Raises ValueError for what is no path.
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"{shown(path)} is no path; give a text or a pathlib.Path.")
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} is no path, as it holds a NUL; give another.")
    return Path(os.path.expanduser(path))


def may_write(path: str | Path, ours: Callable[[Path], bool] = lambda path: True,
              what: str = "") -> None:
    """Raise OSError, one sentence, if a file may not be written to `path`, which stays as it is.

    It may where nothing is, over an empty file, and over one that `ours` knows by its content.
    what: the name of such a file.
    """
    path = located(path)
    try:
        size = path.stat().st_size
    except OSError:  # nothing is there
        parents = path.absolute().parents
        above = next(filter(os.path.exists, parents), parents[0])
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise unwritten(path, OSError(f"{above} is no folder that may be written to")) from None
        return
    if not path.is_file():
        raise IsADirectoryError(f"{path} is a folder or a device; give the path of a file.")
    if size and not ours(path):
        raise FileExistsError(f"{path} is there already and is no {what} written by this command; "
                              "give another name, or move that file away first.")


def begins(path: Path, text: str) -> bool:
    """Whether a file's first characters are `text`, after the mark that spreadsheets put there."""
    with path.open("rb") as file:
        return file.read(len(text.encode()) + 3).removeprefix(b"\xef\xbb\xbf").startswith(text.encode())


def parsed(text: str | bytes):
    """What JSON says, after the mark that some editors put there. Raises ValueError for what is no
    JSON.
    """
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unwritten(path: Path, error: Exception, do: str = "try again") -> OSError:
    """The error that says, in one sentence, why `path` was not written, and what to `do` then."""
    why = getattr(error, "strerror", None) or one_line(error)
    kind = type(error)  # PermissionError and the like; others may want other arguments
    kind = kind if issubclass(kind, OSError) and kind.__module__ == "builtins" else OSError
    return kind(f"{path} could not be written ({why}), and nothing was lost; free some space, or "
                f"choose a folder that you may write to, and {do}.")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """`with whole(path) as partial: …` writes to another name beside `path`, which takes its place
    if nothing was raised.

    A failure leaves an older file as it was and nothing else behind. Folders above `path` are made.
    Raises OSError, one sentence, if the disk does not take it.
    """
    from safetensors import SafetensorError
    path = located(path)
    may_write(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", 0) is None:  # a sentence already
            raise
        raise unwritten(path, error) from error
    finally:
        with suppress(OSError):  # where it could not even be looked for
            partial.unlink(missing_ok=True)


def metadata_of(path: Path) -> dict[str, str] | None:
    """What a safetensors file says beside its tensors; None for a file that is none, or damaged."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return None


def may_write_tensors(path: str | Path, keys: Iterable[str]) -> None:
    """`may_write` for a safetensors file with these keys in its metadata, which tell its kind."""
    keys = set(keys)
    may_write(path, lambda there: (found := metadata_of(there)) is not None and set(found) == keys,
              f"{' or '.join(keys) or 'tensors'} file")


def write_tensors(tensors: dict[str, Tensor], path: str | Path,
                  metadata: dict[str, str] | None = None, *, force: bool = False) -> Path:
    """Write a safetensors file, whole or not at all; returns its path. Tensors may share memory;
    each is written whole.

    Raises OSError, one sentence, if the disk does not take it, or if another kind of file is there
    (one without these keys in its metadata), unless with `force`.
    """
    from safetensors.torch import save_file
    if not force:
        may_write_tensors(path, metadata or ())
    own: dict[str, Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # safetensors refuses two names for one memory
        own[name] = tensor.clone() if place in places else tensor
        places.add(place)
    with whole(path) as partial:
        save_file(own, partial, metadata=metadata)
        partial.chmod(0o644)  # safetensors leaves 0600, which nobody else could read in a shared folder
    return located(path)


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the tensors in name order: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        numbers = tensor.detach().cpu().contiguous().flatten()
        # as bytes, since numpy has no bfloat16
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of what numbers depend on; "not installed" for a package that is only on the path."""
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for name in ("clip-adapter-lite", "torch", "open_clip_torch", "timm", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
