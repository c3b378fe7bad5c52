"""docs/architecture.md: its floors are those of the contract, and what it shows how to add works as shown."""
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
SHOWN: dict = {}
for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
    exec(compile(block, "docs/architecture.md", "exec"), SHOWN)


def test_the_page_lists_the_floors_of_the_contract_in_their_order():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
    wanted = [set(layer.split(" | ")) for layer in contract["layers"]]
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    found = [set(re.findall(r"`(\w+)`", part)) for row in rows for part in row.split(", then ")]
    assert found == wanted


def test_every_floor_that_the_contract_names_is_there():
    package = ROOT / "clip_adapter_lite"
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
    for name in (name for layer in contract["layers"] for name in layer.split(" | ")):
        assert (package / name).is_dir() or (package / f"{name}.py").is_file(), name


def test_the_method_of_the_page(toy_bank):
    SHOWN["test_a_picture_goes_to_the_nearest_mean"](toy_bank)


def test_the_method_of_the_page_can_be_saved_once_it_has_a_name(toy_bank, tmp_path, monkeypatch):
    import torch

    import clip_adapter_lite as cal
    monkeypatch.setitem(cal.METHODS, "nearest-mean", SHOWN["NearestMean"])
    episode = toy_bank().episode(2)
    fitted = SHOWN["NearestMean"]().fit(episode)
    again = cal.load_classifier(cal.save_classifier(fitted, tmp_path / "mean.safetensors"))
    assert torch.equal(again.logits(episode.test.view()), fitted.logits(episode.test.view()))
    assert list(cal.compare([toy_bank()], ["nearest-mean"], [1], [1]).method) == ["nearest-mean"]


def test_the_dataset_of_the_page(tmp_path):
    SHOWN["test_flags_are_read_with_a_fifth_for_validation"](tmp_path)


@pytest.mark.filterwarnings("error")
def test_the_figure_of_the_page(toy_bank):
    SHOWN["test_each_bar_is_a_mean"](toy_bank)
