"""Files are written whole or not at all, and known by their hash."""
import hashlib
from importlib.metadata import PackageNotFoundError

import pytest

from clip_adapter_lite.files import file_hash, versions, whole


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


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 9000)
    assert file_hash(tmp_path / "x") == hashlib.sha256(bytes(range(256)) * 9000).hexdigest()


def test_a_package_that_lies_on_the_path_without_being_installed_loses_no_build(monkeypatch):
    def absent(name):
        if name == "clip-adapter-lite":
            raise PackageNotFoundError(name)
        return "1.0"
    monkeypatch.setattr("importlib.metadata.version", absent)
    assert versions() == {"clip-adapter-lite": "not installed", "torch": "1.0", "open_clip_torch": "1.0", "timm": "1.0",
                          "scikit-learn": "1.0"}
