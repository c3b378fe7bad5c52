"""The finished parts of a long build on disk: the next run of the same job goes on from them."""
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from .errors import BankError, one_line
from .files import parsed, tensor_hash, whole, write_tensors

# what a build puts into its folder, and may leave there without a job.json; all else is somebody's
LEFT = re.compile(r"(job\.json|\w+-\d{8}\.safetensors)\.\d+\.partial")
OURS = re.compile(rf"job\.json|unreadable\.txt|\w+-\d{{8}}\.safetensors|{LEFT.pattern}")


class Shards:
    """A folder of shards, each a safetensors file that is written under another name and renamed,
    so it is whole or absent.

    job: all that the tensors depend on, as JSON has it; kept in `job.json`. A folder with shards of
    another job raises BankError that names what differs, or is emptied with `force`; so does one
    that no build has made, of which nothing is ever deleted but shards, with `force`.
    """

    def __init__(self, folder: Path, job: dict, force: bool = False):
        self.folder, job = folder, json.loads(json.dumps(job))
        about = folder / "job.json"
        before = self._job(about)
        if before != job:
            foreign = [path.name for path in self._files() if not LEFT.fullmatch(path.name)
                       and not (path == about and self._half(path))]
            if foreign and not before and not force:
                raise BankError(f"{folder}, where finished shards go, holds '{foreign[0]}', which no "
                                "build put there; give another --out (out=…), or move that folder "
                                "away first.")
            differing = ", ".join(key for key in job if before.get(key) != job[key])
            if self.finished and not force:
                raise BankError(f"{folder} holds {self.finished} finished shards of another build "
                                f"(another {differing}); give its options again to go on with it, "
                                "another --out (out=…), or --force (force=True) to drop them.")
            self.remove()
            self.put(lambda: folder.mkdir(parents=True, exist_ok=True))
            self.put(lambda: self._write_text(about, json.dumps(job, indent=1, sort_keys=True)))

    @staticmethod
    def _write_text(path: Path, text: str) -> None:
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")

    def _files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    @staticmethod
    def _job(about: Path) -> dict:
        """The job of a build's folder; {} where there is none."""
        try:
            found = dict(parsed(about.read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}
        return found if found.keys() >= {"pictures", "backbone", "weights"} else {}

    @staticmethod
    def _half(about: Path) -> bool:
        """Whether a job.json was cut off in the writing, as older versions could."""
        text = about.read_bytes()
        try:
            parsed(text)
        except ValueError:
            return text[:1] in (b"", b"{")
        return False

    @property
    def finished(self) -> int:
        """How many shards are finished."""
        return sum(path.suffix == ".safetensors" for path in self._files())

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of a finished shard; none if it is absent, or damaged (a power cut can do
        that).
        """
        from safetensors import SafetensorError, safe_open
        try:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                return tensors if (file.metadata() or {}).get("hash") == tensor_hash(tensors) else {}
        except (FileNotFoundError, SafetensorError):
            return {}

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Finish a shard; raises as `put` does."""
        self.put(lambda: write_tensors(tensors, self.folder / f"{name}.safetensors",
                                       {"hash": tensor_hash(tensors)}, force=True))

    def put(self, write: Callable) -> None:
        """Call `write`. Raises OSError, saying what is kept and how to go on, if the disk does not
        take it.
        """
        from safetensors import SafetensorError
        try:
            write()
        except (OSError, SafetensorError) as error:
            why = one_line(error.__cause__ or error)
            raise OSError(f"{self.folder.parent} could not be written to ({why}); mend "
                          "that (free some space?) and give the same command again, which goes on "
                          f"from the {self.finished} finished shards in {self.folder}.") from error

    def remove(self) -> None:
        """Delete what builds put there, and the folder if nothing else is in it."""
        for path in self._files():
            if OURS.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files stay
            self.folder.rmdir()
