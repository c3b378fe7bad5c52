"""`datasets`, `build`, `push` and `pull` as typed, and what `FeatureBank.load` says about a bank that is not there."""
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_building_resume import Tower, stop
from typer.testing import CliRunner

import clip_adapter_lite as cal
from clip_adapter_lite import FeatureBank, banks, building, cli, datasets

OPTIONS = {
    "datasets": ["root"],
    "build": ["dataset", "root", "backbone", "tag", "out", "views", "preprocess", "template", "descriptions", "raw-average",
              "download", "allow-missing", "skip-unreadable", "cap-train", "cap-val", "seed", "batch", "workers", "force"],
    "push": ["backbone", "force"], "pull": ["from", "sha256", "name", "force"],
    "course": ["backbone", "root", "tag", "only", "download", "sources", "batch", "workers", "force"]}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal that breaks no line."""
    for part in (cli.banks, cli.datasets):
        monkeypatch.setattr(part, "console", Console(width=250))


@pytest.fixture(autouse=True)
def tower(monkeypatch):
    """A backbone of a few lines, for any name; `asked` is what was asked for."""
    made = Tower()
    made.asked = []
    monkeypatch.setattr(banks, "load_backbone", lambda *asked: made.asked.append(asked) or made)
    return made


@pytest.fixture
def run():
    """Runs a command line that must succeed; returns what it printed, on one line."""
    def typed(*words, code: int = 0) -> str:
        result = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())
    return typed


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs a command line that must fail with one sentence; returns it."""
    def typed(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["clip-adapter-lite", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert said.startswith("Error: ") and said.endswith(".\n") and said.count("\n") == 1 and ". " not in said, said
        return said
    return typed


@pytest.fixture
def root(tmp_path):
    """Two classes of ten pictures each."""
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "my pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).save(path)
    return tmp_path / "my pets"


# ── which datasets there are ──────────────────────────────────────────────────────────────────────────────────────


def test_every_file_of_commands_enters_the_application():
    folder = Path(cli.__file__).parent
    imported = re.search(r"^from \. import (.+?)  #", Path(cli.__file__).read_text(), flags=re.M)[1].split(", ")
    assert set(imported) == {path.stem for path in folder.glob("*.py") if "@app.command" in path.read_text()}


def test_the_datasets_are_listed_with_what_has_to_be_done_for_them(run):
    said = run("datasets")
    for name, facts in datasets.TABLE.items():
        sizes = "/".join(map(str, facts["splits"].values())) if facts["splits"] else ""
        row = " ".join(f"{name} {facts['classes'] or ''} {sizes} {facts['size']}".split())
        automatic = name in datasets.official.DOWNLOADS and name != "sun397" or "archive" in facts
        assert f"{row} {'--download' if automatic else '' if name == 'folder' else 'by hand'}".strip() in said


@pytest.mark.parametrize("name", datasets.TABLE)
def test_all_that_is_known_of_one_is_shown(run, name, monkeypatch):
    monkeypatch.setattr(cli.datasets, "console", Console(width=999))
    said, facts = run("datasets", name), datasets.TABLE[name]
    assert all(facts[key] in said for key in ("title", "licence", "source", "by_hand", "size"))
    assert all(text in said for text in (*facts["templates"], *(f"ROOT/{folder}" for folder in facts["folders"])))
    assert "there?" not in said
    assert ("CoOp's split │ ROOT/" in said) == (f"│ ROOT/{facts['split_json']} │" in said) == bool(facts["split_json"])
    assert f"build --dataset {name} --root ROOT" in said


def test_a_root_is_looked_through(run, fails, tmp_path):
    for folder in ("dtd/images", "eurosat/2750", "dtd/labels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / datasets.TABLE["dtd"]["split_json"]).touch()
    said = run("datasets", "--root", tmp_path)
    assert "2820/1128/1692 0.6 GB with CoOp's split" in said and "13500/5400/8100 0.1 GB yes" in said
    assert "2944/736/3669 0.8 GB --download" in said and "2 GB by hand" in said
    assert "│ there? │ yes │" in run("datasets", "eurosat", "--root", tmp_path)
    assert "│ there? │ no │" in run("datasets", "oxford_pets", "--root", tmp_path)
    assert "Unknown dataset 'cats'; give one of imagenet, " in fails("datasets", "cats")
    assert f"No folder {tmp_path}/none" in fails("datasets", "--root", tmp_path / "none")


# ── build ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", OPTIONS)
def test_help_has_an_example_and_every_option(run, command):
    text = CliRunner().invoke(cli.app, [command, "--help"]).output
    assert f"Example: clip-adapter-lite {command}" in text
    assert {*OPTIONS[command], "help"} == set(re.findall(r"^│ [* ]*--([a-z0-9-]+)", text, flags=re.M))


def test_a_built_bank_is_found_by_its_name(run, root, cache, tower):
    said = run("build", "--dataset", "folder", "--root", root, "--backbone", "fake", "--tag", "v1")
    place = cache / "banks/fake/my pets.safetensors"
    assert tower.asked == [("fake", "v1")]
    assert f"Wrote {place}: FeatureBank('my pets', 'fake': 2 classes, 10 / 4 / 6 train / val / test" in said
    bank = FeatureBank.load("my pets", "fake")
    assert bank.classnames == ("cat", "dog") and bank.meta["protocol"] in said
    assert said.endswith("Use it with --bank 'my pets' --backbone fake.")


def test_every_option_reaches_the_bank(run, root, tmp_path, tower):
    (root / "cat" / "0.png").write_bytes(b"")
    said = run("build", "--dataset", "folder", "--root", root, "--out", tmp_path / "b.safetensors", "--views", 3,
               "--preprocess", "coop", "--template", "a {}.", "--template", "seven", "--raw-average", "--skip-unreadable",
               "--cap-train", 4, "--cap-val", 1, "--seed", 5, "--batch", 2, "--workers", 1)
    assert said.endswith(f"Use it with --bank {tmp_path}/b.safetensors --backbone fake.")
    loaded = datasets.load_dataset("folder", root, seed=5).cap(train=4, val=1)
    wanted = cal.build_bank(loaded, Tower(), views=3, preprocess="coop", templates=["a {}.", "seven"], normalize_each=False,
                            skip_unreadable=True, seed=5, progress=False)
    bank = FeatureBank.load(tmp_path / "b.safetensors")
    assert (bank.hash, bank.meta, bank.templates) == (wanted.hash, wanted.meta, wanted.templates)
    assert len(bank.templates) == 8 and bank.meta["preprocessing"]["resize_mode"] == "squash"
    assert bank.meta["views"]["seed"] == 5 and "train ≤ 4 a class" in bank.meta["protocol"]


def test_ctrl_c_is_one_sentence_and_the_same_command_goes_on(run, root, cache, tower, monkeypatch):
    monkeypatch.setattr(building, "SHARD", 1)
    command = ["build", "--dataset", "folder", "--root", root, "--backbone", "fake", "--batch", 4]
    tower.at, tower.strike = 3, stop
    said = run(*command, code=130)
    place = cache / "banks/fake/my pets.safetensors"
    assert f"Stopped. What is finished is kept in {place}.parts: the same command goes on from there." in said
    assert len(list(place.with_name(f"{place.name}.parts").glob("*.safetensors"))) >= 2 and not place.exists()
    before, tower.at = tower.seen, None
    run(*command)
    assert tower.seen - before < 20
    assert FeatureBank.load("my pets", "fake").hash == cal.build_bank(
        datasets.load_dataset("folder", root), Tower(), batch=4, progress=False).hash


def test_build_refuses_in_one_sentence(fails, root, cache, tower, tmp_path):
    own = ("build", "--dataset", "folder", "--root", root)
    assert "Unknown dataset 'cats'" in fails("build", "--dataset", "cats", "--root", root)
    assert f"No folder {tmp_path}/none" in fails("build", "--dataset", "dtd", "--root", tmp_path / "none")
    assert "preprocess must be one of clip, coop" in fails(*own, "--preprocess", "squash")
    assert "has no {} for the class name" in fails(*own, "--template", "a photo")
    (root / "cat" / "0.png").write_bytes(b"")
    (root / "dog" / "1.png").unlink()
    (root / "dog" / "1.png").symlink_to(tmp_path / "gone.png")
    said = fails(*own)
    assert "2 pictures could not be read" in said and f"{root}/cat/0.png" in said and f"{root}/dog/1.png" in said
    assert "--skip-unreadable" in said
    assert not list(cache.rglob("my pets.safetensors"))


def test_a_bundled_banks_name_is_not_built_over(fails, root, tower):
    said = fails("build", "--dataset", "folder", "--root", root.rename(root.with_name("dtd10")))
    assert "'dtd10' is the name of a bundled bank" in said and "--out" in said
    assert tower.seen == 0


def test_banks_without_training_or_test_images_are_listed_too(run, toy_bank):
    bank = toy_bank(classes=3, train=0, val=0, test=2, backbone="fake")
    bank.save(cal.banks.cache_place("a", "fake"))
    toy_bank(classes=3, train=2, val=0, test=0, backbone="fake").save(cal.banks.cache_place("b", "fake"))
    cosines = bank.splits["test"].features.double() @ bank.text_features.double().T  # text features have length 1
    accuracy = 100 * (cosines.argmax(1) == bank.splits["test"].labels).double().mean()
    said = run("banks", "--backbone", "fake")
    assert re.search(rf"a │ 3 │ 0 / 0 / 6 │ 0 │ {accuracy:.1f} ", said), said
    assert re.search(r"b │ 3 │ 6 / 0 / 0 │ 2 │ – ", said), said


# ── push and pull ─────────────────────────────────────────────────────────────────────────────────────────────


def test_push_prints_the_command_that_pulls(run, root, cache, tmp_path):
    run("build", "--dataset", "folder", "--root", root, "--backbone", "fake")
    place = cache / "banks/fake/my pets.safetensors"
    before = place.read_bytes()
    said = run("push", "my pets", tmp_path / "shared", "--backbone", "fake")
    command = said.split("others get it with: ")[1]
    assert command.startswith("clip-adapter-lite pull ")
    place.unlink()
    said = run(*shlex.split(command)[1:])
    assert place.read_bytes() == before
    assert "use it with --bank 'my pets' --backbone fake" in said


def test_pull_takes_a_name_and_replaces_only_when_forced(run, fails, toy_bank, cache, tmp_path):
    path = toy_bank(dataset="one").save(tmp_path / "one.safetensors")
    run("pull", path, "--name", "mine")
    other = toy_bank(dataset="two", seed=3).save(tmp_path / "two.safetensors")
    assert "is there already and is another bank" in fails("pull", other, "--name", "mine")
    run("pull", other, "--name", "mine", "--force")
    assert (cache / "banks/none/mine.safetensors").read_bytes() == other.read_bytes()
    assert "where 111111111111… was expected" in fails("pull", other, "--sha256", "1" * 64)
    assert "No bank 'cats'" in fails("push", "cats", tmp_path / "shared")


# ── a bank that is not there ──────────────────────────────────────────────────────────────────────────────────


def test_a_known_dataset_without_a_bank_names_the_command_that_builds_it(expect_refused, run, root, tower, monkeypatch):
    with expect_refused("build it with `clip-adapter-lite build --backbone RN50-quickgelu --dataset oxford_pets --root DIR`",
                        FileNotFoundError) as _:
        FeatureBank.load("oxford_pets", backbone="RN50-quickgelu")
    with pytest.raises(FileNotFoundError) as caught:
        FeatureBank.load("oxford_pets", backbone="RN50-quickgelu")
    build, pull = re.findall(r"`clip-adapter-lite (.+?)`", str(caught.value))
    own = datasets.load_dataset("folder", root)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *_, **__: type(own)(**vars(own) | {"name": name}))
    tower.name = "RN50-quickgelu"
    run(*[word.replace("DIR", str(root)) for word in shlex.split(build)])
    bank = FeatureBank.load("oxford_pets", backbone="RN50-quickgelu")
    assert bank.dataset == "oxford_pets" and tower.asked == [("RN50-quickgelu", None)]
    assert pull == "pull SOURCE --name oxford_pets"


def test_an_own_name_without_a_bank_names_a_command_too(root, run, cache):
    with pytest.raises(FileNotFoundError) as caught:
        FeatureBank.load("my pets", "fake")
    build = re.findall(r"`clip-adapter-lite (.+?)`", str(caught.value))[-1]
    run(*[word.replace("DIR", str(root)) for word in shlex.split(build)])
    assert FeatureBank.load("my pets", "fake").classnames == ("cat", "dog")


def test_a_bank_may_be_built_where_it_is_missing(root, tower, monkeypatch, cache):
    asked, own = [], datasets.load_dataset("folder", root)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or own)
    bank = FeatureBank.load("dtd", "fake", build=True, root=root, download=True, views=2, progress=False)
    assert asked == [(("dtd", root), {"download": True, "allow_missing": False, "seed": 1})]
    assert bank.splits["train"].views == 2 and bank.backbone == "fake"
    seen = tower.seen
    again = FeatureBank.load("dtd", "fake", build=True, root=root)  # it is there now
    assert again.hash == bank.hash and tower.seen == seen and len(asked) == 1
    assert (cache / "banks/fake/dtd.safetensors").is_file()


def test_options_of_building_need_build(expect_refused):
    with expect_refused("root, views are for building a bank; add build=True", ValueError):
        FeatureBank.load("dtd", root="/data", views=2)
    with expect_refused("root is for building a bank", ValueError):
        FeatureBank.load("rsscn7", root="/data")


def test_a_path_is_not_built(tmp_path, expect_refused, tower):
    with expect_refused(f"No bank '{tmp_path}/dtd.safetensors'", FileNotFoundError):
        FeatureBank.load(tmp_path / "dtd.safetensors", build=True, root=tmp_path)
    assert not tower.asked
