"""Files and folders: written whole or not at all, known by their hash."""
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

BUNDLED = Path(__file__).parent / "bundled"


def cache_folder() -> Path:
    """Where built and pulled banks live: $CLIP_ADAPTER_LITE_CACHE, else ~/.cache/clip-adapter-lite."""
    return Path(os.environ.get("CLIP_ADAPTER_LITE_CACHE", "~/.cache/clip-adapter-lite")).expanduser()


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """`with whole(path) as partial: …` writes to another name beside `path`, which takes its place
    if nothing was raised.

    A failure leaves an older file as it was and nothing else behind. Folders above `path` are made.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(tensors: dict[str, Tensor], path: str | Path,
                  metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file, whole or not at all; returns its path. Tensors may share memory;
    each is written whole.
    """
    from safetensors.torch import save_file
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
    return Path(path).expanduser()


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
