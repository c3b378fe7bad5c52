"""The finished parts of a long build on disk: the next run of the same job goes on from them."""
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from .errors import BankError, one_line
from .files import tensor_hash, write_tensors


class Shards:
    """A folder of shards, each a safetensors file that is written under another name and renamed,
    so it is whole or absent.

    job: all that the tensors depend on, as JSON has it; kept in `job.json`. A folder with shards of
    another job raises BankError that names what differs, or is emptied with `force`.
    """

    def __init__(self, folder: Path, job: dict, force: bool = False):
        self.folder, job = folder, json.loads(json.dumps(job))
        about = folder / "job.json"
        before = self._job(about)
        if before != job:
            differing = ", ".join(key for key in job if before.get(key) != job[key])
            if self.finished and not force:
                raise BankError(f"{folder} holds {self.finished} finished shards of another build "
                                f"(another {differing}); give its options again to go on with it, "
                                "another --out, or --force (force=True) to drop them.")
            self.remove()
            self.put(lambda: folder.mkdir(parents=True))
            self.put(lambda: about.write_text(json.dumps(job, indent=1, sort_keys=True),
                                              encoding="utf-8"))

    @staticmethod
    def _job(about: Path) -> dict:
        try:
            return dict(json.loads(about.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    @property
    def finished(self) -> int:
        """How many shards are finished."""
        return len(list(self.folder.glob("*.safetensors")))

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
                                       {"hash": tensor_hash(tensors)}))

    def put(self, write: Callable) -> None:
        """Call `write`. Raises OSError, saying what is kept and how to go on, if the disk does not
        take it.
        """
        from safetensors import SafetensorError
        try:
            write()
        except (OSError, SafetensorError) as error:
            raise OSError(f"{self.folder.parent} could not be written to ({one_line(error)}); mend "
                          "that (free some space?) and give the same command again, which goes on "
                          f"from the {self.finished} finished shards in {self.folder}.") from error

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
