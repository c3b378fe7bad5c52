"""Pictures out of the Parquet files that the Hugging Face hub keeps image datasets in."""
import json
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..errors import BankError, one_line


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
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _classes(table, files: str, wanted: Collection[str]) -> dict[int, str]:
    """The folder of each label that is to be written."""
    try:
        features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError) as error:
        raise BankError(f"{files} does not say what its labels are called, as the Hugging Face "
                        "hub's image datasets do; fetch it by hand.") from error
    known = {plain(name): name for name in wanted}
    chosen = {label: known.get(plain(name)) if wanted else name for label, name in enumerate(names)}
    if lost := set(known) - {plain(name) for name in names}:
        raise BankError(f"{files} has no class '{sorted(lost)[0]}'; fetch it by hand.")
    return {label: Path(name).name for label, name in chosen.items() if name}


def _write(table, group: int, names: dict[int, str], scratch: Path, row: int) -> int:
    """Write the pictures of one row group; returns how many rows it has."""
    labels = table.read_row_group(group, columns=["label"]).column("label").to_pylist()
    if not names.keys() & set(labels):
        return len(labels)
    columns = [name for name in ("image", "domain") if name in table.schema_arrow.names]
    for place, one in enumerate(table.read_row_group(group, columns=columns).to_pylist()):
        if labels[place] not in names:
            continue
        target = scratch / Path(one.get("domain") or ".").name / names[labels[place]]
        target.mkdir(parents=True, exist_ok=True)
        given = Path(one["image"]["path"] or "").name
        if not given or (target / given).exists():
            given = f"{row + place:06}{Path(given).suffix or '.jpg'}"
        (target / given).write_bytes(one["image"]["bytes"])
    return len(labels)
