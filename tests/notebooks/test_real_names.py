"""Notebooks 03 to 08 with one variable changed: banks of a backbone twice as wide, called "RN50-quickgelu".

The banks are synthetic (Gaussian clouds with the bundled banks' names, classes and templates), so only that the notebooks
run is checked. The backbone itself is not to be had here: what needs it must cope.
"""
import pytest
import torch
from conftest import make_bank
from course import BUILD, NOTEBOOKS, SOURCES, code_cells, quiet

from clip_adapter_lite import FeatureBank, list_banks

pytestmark = [pytest.mark.slow, pytest.mark.notebook]
NAME = "RN50-quickgelu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache folder with a synthetic bank for each bundled one: as many classes, few images, D = 1024, 1/τ = 100."""
    folder = tmp_path_factory.mktemp("real-names")
    for number, name in enumerate(list_banks()):
        bundled = FeatureBank.load(name)
        classes = len(bundled.classnames)
        bank = make_bank(classes, 1024, train=min(16, bundled.max_shots), val=4, test=16, noise=4.0, seed=number,
                         logit_scale=100.0, dataset=name, backbone=NAME, classnames=bundled.classnames,
                         templates=bundled.templates, meta={"weights_tag": "openai", "protocol": "synthetic",
                                                            "source": "synthetic", "licence": "none", "preprocessing": {}})
        bank.save(folder / "cache/banks" / NAME / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("source", [s for s in SOURCES if "03" <= s.stem[:2] <= "08"], ids=lambda source: source.stem)
def test_the_notebook_runs_on_banks_of_another_width(source, folder):
    notebook = BUILD.converted(source)
    top = next(cell for cell in code_cells(notebook) if cell.source.startswith('BACKBONE = "pocket"'))
    top.source = f'BACKBONE = "{NAME}"\n' + top.source.partition("\n")[2]
    BUILD.execute(notebook, NOTEBOOKS, **quiet(folder))
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert not [o for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "error"]


def test_the_synthetic_banks_are_what_a_notebook_will_load(folder, monkeypatch):
    monkeypatch.setenv("CLIP_ADAPTER_LITE_CACHE", str(folder / "cache"))
    assert set(list_banks(NAME)) == set(list_banks("pocket"))
    for name in list_banks(NAME):
        bank, bundled = FeatureBank.load(name, NAME), FeatureBank.load(name)
        assert bank.text_features.shape == (len(bundled.classnames), 1024) and bank.backbone == NAME
        assert bank.classnames == bundled.classnames and bank.max_shots == min(16, bundled.max_shots)
        assert torch.isfinite(bank.splits["test"].features).all()
