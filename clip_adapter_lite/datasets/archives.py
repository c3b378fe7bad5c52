"""Fetching and unpacking what torchvision does not: all or nothing, and nothing outside the folder
it is meant for.
"""
import errno
import lzma
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from urllib.request import Request, urlopen

from ..errors import BankError, one_line
from ..files import file_hash, unwritten, whole

BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
FULL = (errno.ENOSPC, errno.EDQUOT)


def attempt(action: Callable, what: str, advice: str, tries: int = 3):
    """`action()`, tried again when a connection fails. Raises BankError: what failed, why, and
    `advice` on what to do.
    """
    for turn in range(1, tries + 1):
        try:
            return action()
        # torchvision raises RuntimeError for a wrong hash
        except (OSError, RuntimeError, HTTPException, *BROKEN) as error:
            full = getattr(error, "errno", None) in FULL
            if turn == tries or full or 400 <= getattr(error, "code", 0) < 500:
                why = f"the disk is full: {one_line(error)}" if full else one_line(error)
                raise BankError(f"{what} could not be fetched ({why}); {advice}.") from error
            time.sleep(2 ** turn)


def fetch(url: str, path: str | Path, sha256: str | None = None, tries: int = 3) -> Path:
    """Download `url` to `path`, under a temporary name until it is whole and its SHA-256 is right;
    a bar shows progress.

    A file that is there already, with the right hash if one is known, is kept. Raises BankError.
    """
    from rich.progress import wrap_file
    path = Path(path)
    if path.is_file() and sha256 in (None, file_hash(path)):
        return path

    def once(partial: Path):
        with urlopen(Request(url, headers={"User-Agent": "clip-adapter-lite"}), timeout=60) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with wrap_file(answer, total=size,
                           description=path.name) as raw, partial.open("wb") as file:
                shutil.copyfileobj(raw, file, 1 << 20)
        if size and partial.stat().st_size != size:
            raise OSError(f"the connection closed after {partial.stat().st_size} of {size} bytes")

    with whole(path) as partial:
        attempt(lambda: once(partial), url, "check the network, or fetch it elsewhere and put it "
                                            f"at {path}", tries)
        if sha256 and (found := file_hash(partial)) != sha256:
            raise BankError(f"{url} has SHA-256 {found[:12]}… instead of {sha256[:12]}…, so it was "
                            "changed or damaged on the way; try again, and do not use it if this "
                            "stays.")
    return path


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack a zip or tar archive, compressed or not, into `folder`; a failure leaves nothing of it
    there.

    Raises BankError, before that member is written, for one that would leave the folder or is
    neither file nor folder (links, devices), or larger than the room on the disk; also for a
    damaged archive and for an entry that is there already. Raises OSError if the disk does not
    take it.
    """
    from rich import progress
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        try:
            if tarfile.is_tarfile(archive):
                with progress.open(archive, "rb",
                                   description=archive.name) as raw, tarfile.open(fileobj=raw) as tar:
                    for member in tar:
                        _check(archive, member.name, member.isfile() or member.isdir(),
                               member.size, folder)
                        tar.extract(member, scratch, filter="data")
                    while tar.fileobj.read(1 << 20):  # to the checksum at the end
                        pass
            elif zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as bundle:
                    for member in progress.track(bundle.infolist(), archive.name):
                        kind = stat.S_IFMT(member.external_attr >> 16)
                        _check(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR),
                               member.file_size, folder)
                        bundle.extract(member, scratch)
            else:
                raise BankError(f"{archive} is neither a zip nor a tar archive, or is damaged; "
                                "fetch it again.")
        except (*BROKEN, OSError, RuntimeError) as error:
            if getattr(error, "errno", None) in FULL:
                raise unwritten(folder, error, "unpack it again") from error
            # encrypted, packed in another way, names too long, a file where a folder should be
            raise BankError(f"{archive} is damaged or cannot be unpacked ({_why(error)}); fetch it "
                            "again.") from error
        entries = sorted(Path(scratch).iterdir())
        if there := [entry.name for entry in entries if (folder / entry.name).exists()]:
            raise BankError(f"{archive} would overwrite {folder / there[0]}; move that away first.")
        for entry in entries:
            entry.rename(folder / entry.name)


def _why(error: Exception) -> str:
    """Why, without the name of the place that it was unpacked to."""
    return getattr(error, "strerror", None) or one_line(error)


def _check(archive: Path, name: str, plain: bool, size: int, folder: Path) -> None:
    path = PureWindowsPath(name)  # reads both kinds of separators, and drives
    if path.anchor or ".." in path.parts:
        raise BankError(f"{archive} is not safe: its member '{name}' would be written outside the "
                        "folder; do not use it.")
    if not plain:
        raise BankError(f"{archive} is not safe: its member '{name}' is a link or a device; do not "
                        "use it.")
    if size > (free := shutil.disk_usage(folder).free):
        raise BankError(f"{archive} holds '{name}' of {size:,} bytes, and there is room for {free:,} "
                        f"in {folder}; make room, or take another folder.")
