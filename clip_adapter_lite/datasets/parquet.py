"""Pictures out of the Parquet files that the Hugging Face hub keeps image datasets in."""
import json
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..errors import BankError, one_line
from ..values import shown


def plain(name: str) -> str:
    """A class name without the signs in which sources differ: "/a/art_gallery" is "art gallery"."""
    return re.sub(r"[\W_]+", " ", re.sub("^/?[a-z]/", "", name.lower())).strip()


def unpack_parquet(files: str, folder: Path, wanted: Collection[str] = ()) -> None:
    """Write the pictures of Parquet files (a path, an address of fsspec, or a pattern) as
    `folder/[domain/]class/name`, whole or not at all.

    wanted: the classes to write, as folders are called; of a remote file only the row groups that
    hold them are read. The name is the one that the row gives, or its number.
    Raises BankError for what is no such file, OSError if the network or the disk fails.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise BankError("Parquet files are read by pyarrow, which is not installed; run "
                        "`pip install pyarrow` and give the same command again.") from error
    import fsspec
    from rich.progress import track
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking-"))
    try:
        row = 0
        opened = fsspec.open_files(files, "rb")
        if not opened:
            raise BankError(f"There is nothing at {files}; fetch it by hand.")
        for file in track(opened, folder.name, disable=len(opened) == 1):
            with file as raw:
                table = ParquetFile(raw)
                names = _classes(table, files, wanted)
                for group in track(range(table.num_row_groups), folder.name,
                                   disable=len(opened) > 1):
                    row += _write(table, group, names, scratch, row)
        for entry in sorted(scratch.iterdir()):
            entry.rename(folder / entry.name)
    except ArrowException as error:
        raise BankError(f"{files} is damaged ({one_line(error)}); fetch it again.") from error
    except (BankError, OSError):
        raise
    except Exception as error:  # every file system has its own: no network is httpx's ConnectError
        raise OSError(one_line(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _classes(table, files: str, wanted: Collection[str]) -> dict[int, str]:
    """The folder of each label that is to be written."""
    try:
        features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
        told = isinstance(names, list) and all(isinstance(name, str) for name in names)
        told = told and {"image", "label"} <= set(table.schema_arrow.names)
    except (KeyError, TypeError, ValueError, RecursionError):
        told = False
    if not told:
        raise BankError(f"{files} does not say what its labels are called, as the Hugging Face "
                        "hub's image datasets do; fetch it by hand.")
    known = {plain(name): name for name in wanted}
    chosen = {label: known.get(plain(name)) if wanted else name for label, name in enumerate(names)}
    if lost := set(known) - {plain(name) for name in names}:
        raise BankError(f"{files} has no class '{sorted(lost)[0]}'; fetch it by hand.")
    return {label: _part(name) for label, name in chosen.items() if name is not None}


def _part(name: str) -> str:
    """A name as one part of a path. Raises BankError for one that would lead elsewhere."""
    found = Path(name).name
    if found in ("", "..") or "\0" in found or len(found) > 100:
        raise BankError("A Parquet file calls a class, a domain or a picture "
                        f"{shown(name)}, which can be no folder or file; fetch it by hand.")
    return found


def _write(table, group: int, names: dict[int, str], scratch: Path, row: int) -> int:
    """Write the pictures of one row group; returns how many rows it has."""
    labels = table.read_row_group(group, columns=["label"]).column("label").to_pylist()
    if not names.keys() & set(labels):
        return len(labels)
    columns = [name for name in ("image", "domain") if name in table.schema_arrow.names]
    for place, one in enumerate(table.read_row_group(group, columns=columns).to_pylist()):
        if labels[place] not in names:
            continue
        picture, domain = one["image"], one.get("domain")
        data = picture.get("bytes") if isinstance(picture, dict) else None
        if not isinstance(data, bytes):
            raise BankError(f"Row {row + place} of a Parquet file holds no picture; fetch it by hand.")
        target = scratch / (_part(str(domain)) if domain else ".") / names[labels[place]]
        target.mkdir(parents=True, exist_ok=True)
        given = _part(picture["path"]) if picture.get("path") else ""
        if not given or (target / given).exists():
            given = f"{row + place:06}{Path(given).suffix or '.jpg'}"
        (target / given).write_bytes(data)
    return len(labels)
