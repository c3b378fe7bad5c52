"""Text, names and folders as other programs leave them: encodings, line ends, hidden files."""
import codecs
import unicodedata
from pathlib import Path

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # last: UTF-32's begins so
DROPPINGS = {"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found",
             "@eadir", "$recycle.bin", "system volume information", "icon\r"}


def decoded(data: bytes) -> str:
    """A file's text: UTF-8, UTF-16, UTF-32, else as old Excel writes it; its lines end in "\\n"."""
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:4]:  # no mark, but Latin letters' other bytes are 0
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:  # every byte means something in these two
        mac = b"\r" in data and b"\n" not in data
        text = data.decode("mac_roman" if mac else "cp1252", "replace")
    return lines(text)


def lines(text: str) -> str:
    """The text with the line ends of Linux, whichever it had, and without a mark at its head."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")


def composed(name: str) -> str:
    """The name with accents in its letters (NFC), as people type it; Macs' files have them apart."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What two spellings of a name have in common: accents in either form, capitals, spaces."""
    return composed(composed(name).strip().casefold())


def shown(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what systems hide there ("._x", "__MACOSX")."""
    try:
        return sorted(path for path in folder.iterdir() if not hidden(path.name))
    except OSError:  # one folder that may not be read stops nobody
        return []


def hidden(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in DROPPINGS
