"""Files are written whole or not at all, and known by their hash."""
import errno
import hashlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors import torch as writer
from safetensors.torch import load_file

from clip_adapter_lite.files import file_hash, located, tensor_hash, versions, whole, write_tensors


def test_a_file_takes_its_place_once_it_is_whole(tmp_path):
    place = tmp_path / "new" / "table.csv"
    with whole(place) as partial:
        partial.write_text("rows")
        assert not place.exists() and partial.parent == place.parent
    assert place.read_text() == "rows" and list(place.parent.iterdir()) == [place]


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path):
    place = tmp_path / "table.csv"
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(place) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert place.read_text() == "old" and list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("error", [SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
                                   OSError(errno.ENOSPC, "No space left"), PermissionError(errno.EACCES, "Denied")])
def test_tensors_that_the_disk_does_not_take_are_one_sentence_and_the_older_file_stays(tmp_path, monkeypatch, error,
                                                                                       expect_refused):
    place = write_tensors({"x": torch.ones(2)}, tmp_path / "t.safetensors")
    before = place.read_bytes()

    def fail(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise error
    monkeypatch.setattr(writer, "save_file", fail)
    with expect_refused(f"{place} could not be written (", OSError):
        write_tensors({"x": torch.zeros(2)}, place)
    assert place.read_bytes() == before and list(tmp_path.iterdir()) == [place]


def test_a_name_that_only_begins_with_a_tilde_is_a_name():
    assert located("~nobody of that name/x") == Path("~nobody of that name/x")
    assert located("~/x") == Path.home() / "x"
    with pytest.raises(ValueError, match="holds a NUL"):
        located("a\0b")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 9000)
    assert file_hash(tmp_path / "x") == hashlib.sha256(bytes(range(256)) * 9000).hexdigest()


NUMBERS = torch.arange(12.).reshape(3, 4)
SHARING = {"the same twice": (NUMBERS, NUMBERS), "one a part of the other": (NUMBERS, NUMBERS[1:]),
           "parts that overlap": (NUMBERS[:2], NUMBERS[1:]), "one turned over": (NUMBERS, NUMBERS.T),
           "in two shapes": (NUMBERS, NUMBERS.flatten()), "one row repeated": (NUMBERS[0].expand(5, 4), NUMBERS[0]),
           "one with a graph": (NUMBERS, NUMBERS.clone().requires_grad_() * 2), "both empty": (NUMBERS[:0], NUMBERS[:0]),
           "in another dtype": (NUMBERS.bfloat16(), NUMBERS.bfloat16()[1:])}


@pytest.mark.parametrize("first, second", SHARING.values(), ids=SHARING)
def test_tensors_that_share_memory_are_written_as_if_they_did_not(first, second, tmp_path):
    back = load_file(write_tensors({"a": first, "b": second}, tmp_path / "t.safetensors"))
    assert torch.equal(back["a"], first) and torch.equal(back["b"], second) and back["b"].dtype == second.dtype
    alone = {"a": first.detach().clone(memory_format=torch.contiguous_format),
             "b": second.detach().clone(memory_format=torch.contiguous_format)}
    assert (tmp_path / "t.safetensors").read_bytes() == write_tensors(alone, tmp_path / "u.safetensors").read_bytes()
    assert tensor_hash({"a": first, "b": second}) == tensor_hash(back)


def test_the_hash_of_tensors_is_that_of_names_types_shapes_and_bytes():
    wanted = hashlib.sha256(b"x torch.float32 [3, 4]\n" + NUMBERS.numpy().tobytes()).hexdigest()
    assert tensor_hash({"x": NUMBERS}) == wanted != tensor_hash({"x": NUMBERS.T.contiguous()})


def test_a_package_that_lies_on_the_path_without_being_installed_loses_no_build(monkeypatch):
    def absent(name):
        if name == "clip-adapter-lite":
            raise PackageNotFoundError(name)
        return "1.0"
    monkeypatch.setattr("importlib.metadata.version", absent)
    assert versions() == {"clip-adapter-lite": "not installed", "torch": "1.0", "open_clip_torch": "1.0", "timm": "1.0",
                          "scikit-learn": "1.0"}
