"""environment.yml gives conda users what pyproject.toml gives pip users; the repository keeps within its limits."""
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch"}


def requirement(text: str) -> tuple[str, str]:
    name, version = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*([=<>!~].*)?", text.strip()).groups()
    return CONDA_NAMES.get(name, name), (version or "").replace(" ", "")


def test_environment_yml_equals_the_dependencies_and_the_notebooks_extra_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(map(requirement, project["dependencies"] + project["optional-dependencies"]["notebooks"]))
    wanted["python"] = project["requires-python"]
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    found = dict(map(requirement, [e for e in listed if isinstance(e, str) and e != "pip"] +
                     [e for e in from_pip if not e.startswith("-e")]))
    assert found == wanted


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_file_is_over_20_mb_and_weights_and_banks_are_under_45_mb_together():
    sizes = {path: path.stat().st_size for path in tracked()}
    assert max(sizes.values()) <= 20e6
    assert sum(size for path, size in sizes.items() if path.suffix == ".safetensors") <= 45e6


def test_no_pickle_and_no_picture_of_a_research_dataset_is_committed():
    pictures = [p for p in tracked() if p.suffix.lower() in (".jpg", ".jpeg", ".bmp", ".gif", ".ppm")]
    assert not pictures
    assert not [p for p in tracked() if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz")]


def lint_imports(config: Path) -> subprocess.CompletedProcess:
    return subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", config], cwd=ROOT,
                          capture_output=True, text=True)


def test_imports_go_one_way():
    """The layers of pyproject.toml: imports inside functions count, and a new file without a layer fails."""
    done = lint_imports(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout


def test_an_import_that_goes_up_is_seen_though_it_stands_inside_a_function(tmp_path):
    """The package's own layers turned over: what banks takes from its builder would then go up."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    turned = text.replace('"banks",\n  "building | episodes"', '"building | episodes",\n  "banks"')
    assert turned != text
    (tmp_path / "pyproject.toml").write_text(turned, encoding="utf-8")
    done = lint_imports(tmp_path / "pyproject.toml")
    assert done.returncode == 1
    assert "clip_adapter_lite.banks is not allowed to import clip_adapter_lite.building" in done.stdout


def test_the_readme_example_runs_and_prints_a_verdict(capsys):
    """The ten lines, exactly as a reader would paste them."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"zero-shot 0\.\d{3}, CLIP-Adapter 0\.\d{3}, α = \d", printed)
    assert "clip-adapter above zero-shot" in printed


def test_the_model_card_states_the_zero_shot_accuracies_that_the_bundled_banks_have():
    """The numbers in prose are those of the code beside it."""
    import clip_adapter_lite as cal
    card = (ROOT / "clip_adapter_lite/pocket/MODEL_CARD.md").read_text(encoding="utf-8")
    for name in ("caltech101", "cifar10", "pacs-photo", "sun18", "dtd10", "rsscn7", "gtsrb", "grocery"):
        episode = cal.FeatureBank.load(name).episode(1)
        accuracy = cal.ZeroShot(device="cpu").fit(episode).accuracy(episode.test)
        assert f"{100 * accuracy:.1f} %" in card, name
