"""The command line, as typed: what it prints and writes, and one sentence for every mistake."""
import csv
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import clip_adapter_lite as cal
from clip_adapter_lite import cli
from clip_adapter_lite.datasets import fashion_mnist
from clip_adapter_lite.encoding import encode
from clip_adapter_lite.experiments.runs import COLUMNS, Run

OPTIONS = {
    "banks": ["--backbone"], "info": [],
    "compare": ["--banks", "--methods", "--shots", "--seeds", "--backbone", "--out", "--resume", "--jobs",
                "--engine", "--address", "--allow-fewer", "--shots-only"],
    "fit": ["--bank", "--out", "--method", "--shots", "--seed", "--backbone", "--allow-fewer", "--scaling",
            "--none-of-these", "--coverage", "--class-wise", "--all"],
    "predict": ["--classes", "--classifier", "--template", "--descriptions", "--top", "--out", "--skip-unreadable",
                "--force", "--batch", "--workers", "--backbone", "--tag"],
    "export": ["--out", "--head-only", "--tag"]}
BANKS = ("caltech101", "cifar10", "dtd10", "fashion-mnist", "grocery", "gtsrb", "pacs-art", "pacs-cartoon", "pacs-photo",
         "pacs-sketch", "rsscn7", "sun18")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal that breaks no line."""
    wide = Console(width=250)
    for part in (cli.banks, cli.studies, cli.fitting, cli.inference):
        monkeypatch.setattr(part, "console", wide)


@pytest.fixture
def run():
    """Runs a command line that must succeed; returns what it printed."""
    def typed(*words) -> str:
        result = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout
    return typed


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs a command line that must fail, through `main`; returns what it said on stderr, without typer's frame."""
    def typed(*words, raised: bool = True) -> str:
        monkeypatch.setattr(sys, "argv", ["clip-adapter-lite", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if raised:  # not refused by typer, which says it in a frame
            assert said.startswith("Error: ") and said.endswith(".\n")
            assert said.count("\n") == 1 and ". " not in said, said
        return " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())
    return typed


@pytest.fixture(scope="module")
def boot(tmp_path_factory):
    """(path, class name) of a test picture of Fashion-MNIST, in a folder whose name is no markup."""
    dataset = fashion_mnist()
    picture, label = dataset.splits["test"][0]
    path = tmp_path_factory.mktemp("pictures") / "[red]boot.png"
    picture.save(path)
    return path, dataset.classnames[label]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


SMALL = ("compare", "--banks", "pacs-photo,rsscn7", "--methods", "zero-shot,clip-adapter", "--shots", "1", "--jobs", "1")


# ── help and facts ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", OPTIONS)
def test_help_has_an_example_and_every_option(run, command):
    text = run(command, "--help")
    assert f"Example: clip-adapter-lite {command}" in text
    assert {*OPTIONS[command], "--help"} == set(re.findall(r"^│ [* ]*(--[a-z-]+)", text, flags=re.M))


def test_help_lists_every_command(run):
    text = run("--help")
    assert all(re.search(rf"^│ {command}\s", text, flags=re.M) for command in OPTIONS)


def test_banks_lists_the_twelve(run):
    text = run("banks")
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert sorted(rows) == sorted(BANKS) == sorted(cal.list_banks())
    bank = cal.FeatureBank.load("pacs-photo")
    episode = bank.episode(1)
    accuracy = 100 * cal.ZeroShot(device="cpu").fit(episode).accuracy(episode.test)
    cells = [cell.strip() for cell in rows["pacs-photo"].split("│")[1:-1]]
    assert cells == ["pacs-photo", "7", "168 / 42 / 210", "24", f"{accuracy:.1f}"]
    assert "no number here says anything of OpenAI's CLIP" in text


def test_banks_of_a_backbone_without_any(run):
    assert "pacs-photo" not in run("banks", "--backbone", "RN50-quickgelu")


def test_info_lists_versions(run):
    text = run("info")
    for name, version in {"torch": torch.__version__, "clip-adapter-lite": "", "open_clip_torch": "", "timm": "",
                          "scikit-learn": "", "python": sys.version.split()[0], "device": "", "cache": ""}.items():
        assert re.search(rf"{name}\s+│\s+{re.escape(version.split('+')[0])}", text), name


def test_info_is_told_of_a_card_that_cannot_be_used_too(run, monkeypatch):
    def busy(*size, device):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", busy)
    text = " ".join(run("info").replace("│", " ").split())
    assert "cuda cannot be used (CUDA error: CUDA-capable device(s) is/are busy" in text and "bundled banks" in text


# ── compare ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_compare_then_resume_then_again(run, tmp_path):
    out = tmp_path / "deep" / "study.csv"
    text = run(*SMALL, "--seeds", "1,2", "--out", out)
    rows = rows_of(out)
    assert out.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert COLUMNS == ("dataset", "backbone", "method", "shots", "seed", "labelled", "accuracy", "val_accuracy", "alpha",
                       "steps", "seconds", "parameters")
    assert len(rows) == 8 and "8 of 8 runs to do" in text and f"Wrote {out} (8 runs)" in text
    assert {(r["dataset"], r["method"], r["shots"], r["seed"]) for r in rows} == {
        (d, m, "1", s) for d in ("pacs-photo", "rsscn7") for m in ("zero-shot", "clip-adapter") for s in "12"}
    episode = cal.FeatureBank.load("rsscn7").episode(1, seed=2)
    (row,) = [r for r in rows if (r["dataset"], r["method"], r["seed"]) == ("rsscn7", "clip-adapter", "2")]
    assert float(row["accuracy"]) == cal.CLIPAdapter(device="cpu").fit(episode).accuracy(episode.test)
    for bank in ("pacs-photo", "rsscn7"):
        printed = text.split(f"{bank}: test accuracy")[1].split("features:")[0]
        for method in ("zero-shot", "clip-adapter"):
            a, b = (100 * float(r["accuracy"]) for r in rows if (r["dataset"], r["method"]) == (bank, method))
            assert re.search(rf"{method}\s+│\s+{(a + b) / 2:.1f}±{abs(a - b) / 2 ** 0.5:.1f}", printed)
    said = " ".join(text.split())
    assert said.count("features: pocket CLIP (ImageNet-supervised image tower)") == 2  # one a table
    assert said.count("labelled images a class: 0 zero-shot; 2 clip-adapter") == 2  # a shot and a validation image
    with Image.open(out.with_suffix(".png")) as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 300 and len(picture.convert("L").getcolors()) > 10
    assert sorted(p.name for p in out.parent.iterdir()) == ["study.csv", "study.json", "study.png"]

    before, about = out.read_bytes(), out.with_suffix(".json").read_bytes()
    assert "0 of 8 runs to do" in run(*SMALL, "--seeds", "1,2", "--out", out, "--resume")
    assert out.read_bytes() == before and out.with_suffix(".json").read_bytes() == about

    assert "2 of 6 runs to do" in run("compare", "--banks", "rsscn7", "--methods", "zero-shot,clip-adapter", "--shots", "1",
                                      "--jobs", "1", "--seeds", "1,2,3", "--out", out, "--resume")
    more = rows_of(out)
    assert len(more) == 10 and all(row in more for row in rows)

    resumed = out.read_bytes()
    once = run(*SMALL, "--seeds", "1", "--out", out)
    assert "4 of 4 runs to do" in once and "accuracy in %, one seed" in " ".join(once.split())
    assert "±" not in once  # one seed has no deviation
    assert out.with_name("study.previous.csv").read_bytes() == resumed
    again = rows_of(out)
    assert len(again) == 4
    for row in again:  # the same numbers, but for the time
        assert row | {"seconds": 0} in [r | {"seconds": 0} for r in rows]


def test_methods_take_settings_in_brackets(run, tmp_path):
    out = tmp_path / "study.csv"
    methods = "tip-adapter(finetune=true), clip-adapter(alpha=0.2,steps=5)"
    text = run("compare", "--banks", "rsscn7", "--methods", methods, "--shots", "1", "--seeds", "1", "--out", out)
    episode, rows = cal.FeatureBank.load("rsscn7").episode(1, seed=1), rows_of(out)
    asked = [cal.TipAdapter(finetune=True), cal.CLIPAdapter(alpha=0.2, steps=5)]
    assert [row["method"] for row in rows] == [method.label for method in asked]
    assert [float(row["accuracy"]) for row in rows] == [m.fit(episode).accuracy(episode.test) for m in asked]
    assert all(method.label in text for method in asked)


@pytest.mark.parametrize("changed, said", [
    (["--methods", "clip-adapter(alfa=1)"], "'alfa', which is no setting of clip-adapter"),
    (["--banks", "imagenet"], "No bank 'imagenet'"), (["--banks", "pacs-photo,nowhere.safetensors"], "nowhere.safetensors"),
    (["--banks", ""], "Nothing to run"), (["--methods", "clip-adaptor"], "Unknown method 'clip-adaptor'; the methods are"),
    (["--methods", "zero-shot,zero-shot"], "asked for twice"), (["--shots", "0"], "shots must be at least 1; got 0"),
    (["--shots", "-1,2"], "shots must be at least 1; got -1"), (["--seeds", ","], "Nothing to run"),
    (["--banks", "pacs-photo,gtsrb", "--shots", "1,16"], "fewer than the 16 shots"),
    (["--backbone", "RN50-quickgelu"], "No bank 'pacs-photo' for backbone 'RN50-quickgelu' (there: none)")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_compare_refuses_before_any_work(fails, tmp_path, changed, said):
    out = tmp_path / "out" / "study.csv"
    assert said in fails(*SMALL, "--seeds", "1", "--out", out, *changed)
    assert not out.parent.exists()


@pytest.mark.parametrize("option", ["--shots", "--seeds"])
@pytest.mark.parametrize("text", ["1,two", "1.5", "1-4"])
def test_numbers_that_are_none(fails, tmp_path, option, text):
    said = fails(*SMALL, "--out", tmp_path / "out" / "study.csv", option, text, raised=False)
    assert f"{option} takes whole numbers with commas between them" in said and f"got '{text}'." in said
    assert not (tmp_path / "out").exists()


def test_a_refused_study_leaves_the_old_results(fails, tmp_path):
    out = tmp_path / "study.csv"
    out.write_text("old\n")
    fails(*SMALL, "--out", out, "--methods", "other")
    assert out.read_text() == "old\n" and [p for p in tmp_path.iterdir()] == [out]


def test_an_interrupt_keeps_the_finished_runs(run, monkeypatch, tmp_path):
    out, finish = tmp_path / "study.csv", Run.__call__

    def interrupted(self):
        if self.seed == 3:
            raise KeyboardInterrupt
        return finish(self)
    words = ["compare", "--banks", "rsscn7", "--methods", "zero-shot", "--shots", "1", "--seeds", "1,2,3", "--jobs", "1",
             "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "__call__", interrupted)
        result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 130 and "--resume goes on" in result.output and "Traceback" not in result.output
    assert [row["seed"] for row in rows_of(out)] == ["1", "2"]
    assert "1 of 3 runs to do" in run(*words, "--resume")
    assert [row["seed"] for row in rows_of(out)] == ["1", "2", "3"]


def test_brackets_in_an_error_are_not_markup(monkeypatch, capsys):
    def fail():
        raise ValueError("features must be [n, d] and not [/red].")
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "Error: features must be [n, d] and not [/red].\n"


# ── fit and predict ───────────────────────────────────────────────────────────────────────────────────────────────


def named(text: str) -> dict[str, float]:
    """class name → printed probability in %."""
    return {name: float(p) for p, name in re.findall(r"^ +([\d.]+) %  (.+)$", text, flags=re.M)}


def test_shots_only_looks_at_no_validation_image(run, tmp_path):
    words = ["compare", "--banks", "pacs-photo", "--methods", "clip-adapter(steps=2)", "--shots", "2", "--seeds", "1",
             "--jobs", "1", "--shots-only", "--out", tmp_path / "s.csv"]
    assert "labelled images a class: 2 clip-adapter(steps=2)" in " ".join(run(*words).split())
    (row,) = rows_of(tmp_path / "s.csv")
    assert (row["labelled"], row["val_accuracy"]) == ("2.0", "")


def test_fit_says_where_a_learned_ratio_is_from(run, tmp_path):
    text = run("fit", "--bank", "pacs-photo", "--shots", "1", "--method", "clip-adapter(steps=2)",
               "--out", tmp_path / "c.safetensors")
    fitted = cal.CLIPAdapter(steps=2, device="cpu").fit(cal.FeatureBank.load("pacs-photo").episode(1))
    assert f"α = {fitted.alpha:.2f} (from validation images)" in " ".join(text.split())


def test_fit_then_predict(run, tmp_path, boot):
    file = tmp_path / "deep" / "fashion.safetensors"
    text = run("fit", "--bank", "fashion-mnist", "--method", "tip-adapter", "--shots", "8", "--seed", "3", "--out", file)
    bank = cal.FeatureBank.load("fashion-mnist")
    episode = bank.episode(8, seed=3)
    fitted = cal.TipAdapter(device="cpu").fit(episode)
    assert f"test accuracy {100 * fitted.accuracy(episode.test):.1f} % on 2500 images" in text
    assert "8 shots, seed 3, 12 labelled images a class" in text  # and 4 for validation
    assert f"validation accuracy {100 * fitted.val_accuracy:.1f} %" in text and f"α = {fitted.alpha:.2f}, β = " in text
    assert "tip-adapter on fashion-mnist, 8 shots, seed 3" in text and "pocket CLIP (ImageNet-supervised" in text
    assert torch.equal(cal.load_classifier(file).logits(episode.test.features), fitted.logits(episode.test.features))

    path, name = boot
    text = run("predict", path, path, "--classifier", file, "--top", "99")
    assert text.splitlines()[0] == str(path)  # a name in brackets is not markup
    chances = named(text)
    assert set(chances) == set(bank.classnames) and sum(chances.values()) == pytest.approx(100, abs=0.6)
    assert max(chances, key=chances.get) == next(iter(chances)) == name
    assert text.count(" %  ") == 20 and "tip-adapter)" in text
    assert len(named(run("predict", path, "--classifier", file, "--top", "2"))) == 2


def test_fit_reports_calibrates_and_fits_again(run, tmp_path):
    file = tmp_path / "d.safetensors"
    words = ["fit", "--bank", "caltech101", "--method", "clip-adapter(alpha=0.3,steps=5)", "--shots", "2", "--out", file,
             "--scaling", "temperature", "--none-of-these", "0.1", "--coverage", "0.9"]
    text = " ".join(run(*words).split())
    bank, held_out = cal.FeatureBank.load("caltech101").hold_out()
    episode = bank.episode(2)
    fitted = cal.CLIPAdapter(alpha=0.3, steps=5, device="cpu").fit(episode)
    report = cal.report(fitted, episode.test)
    before = cal.report(cal.ZeroShot().fit(episode), episode.test)
    assert (f"all images alike │ 2465 │ {100 * before.accuracy:.1f} │ {100 * report.accuracy:.1f} │ │ all classes alike │ "
            f"2465 │ {100 * before.balanced_accuracy:.1f} │ {100 * report.balanced_accuracy:.1f}") in text
    worst = report.worst(1).iloc[0]
    assert f"{worst['true']} taken for {worst['predicted']}: {worst['count']} (" in text and worst["pictures"][0] in text
    with (tmp_path / "d.confusion.csv").open(encoding="utf-8") as matrix:
        assert sum(int(cell) for row in list(csv.reader(matrix))[1:] for cell in row[1:]) == 2465
    assert (tmp_path / "d.confusion.png").is_file()
    kept = cal.load_classifier(file)
    sure = cal.calibrate(fitted, held_out, false_reject=0.1, coverage=0.9).calibration
    assert kept.calibration.threshold == sure.threshold and torch.equal(kept.calibration.limits, sure.limits)
    assert f"({len(held_out)} held-out validation images, which selected nothing)" in text
    assert f"none of these is on: highest logits below {sure.threshold:.2f}" in text.lower() and "AUROC 0." in text

    text = " ".join(run(*words[:6], "all", "--out", file, "--all").split())  # over its own files
    total = sum(len(split) for split in cal.FeatureBank.load("caltech101").splits.values())
    assert f"to {total} labelled pictures (training, validation and test), which are all" in text
    assert "the refit itself is unmeasured" in text and cal.load_classifier(file).calibration is None


def test_a_folder_to_a_table_and_an_export(run, fails, tmp_path, boot):
    file, out = tmp_path / "c.safetensors", tmp_path / "t.csv"
    run("fit", "--bank", "fashion-mnist", "--method", "zero-shot", "--shots", "1", "--out", file, "--none-of-these", "0.2")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "boot.png").write_bytes(Path(boot[0]).read_bytes())
    text = " ".join(run("predict", tmp_path / "few", "--classifier", file, "--out", out, "--top", "1").split())
    assert f"Wrote {out}: 1 picture." in text and "none of these is on, for at most 20 %" in text
    assert rows_of(out)[0]["file"] == str(tmp_path / "few" / "boot.png")
    assert "is there already" in fails("predict", tmp_path / "few", "--classifier", file, "--out", out)
    (tmp_path / "none").mkdir()
    assert "holds no pictures" in fails("predict", tmp_path / "none", "--classifier", file, "--out", tmp_path / "n.csv")
    text = run("export", file, "--out", tmp_path / "c.pt2", "--head-only")
    assert "features [N, 512]" in text and (tmp_path / "c.pt2").is_file()


def test_predict_zero_shot_with_several_templates(run, boot):
    path, classes = boot[0], ("ankle boot", "t-shirt", "bag")
    templates = ("a photo of a {}.", "a drawing of a {}.")
    backbone = cal.load_backbone("pocket", device="cpu")
    features = torch.nn.functional.normalize(encode(backbone, [path]), dim=-1)
    for chosen in (templates[:1], templates):
        words = [word for template in chosen for word in ("--template", template)]
        text = run("predict", path, "--classes", " ankle boot, t-shirt,bag, ", *words)
        weights = cal.classifier_weights(backbone, classes, chosen)
        chances = (backbone.logit_scale * features @ weights.T).softmax(1)[0]
        assert named(text) == pytest.approx(dict(zip(classes, (100 * chances).tolist())), abs=0.06)
        assert "zero-shot" in text
    assert named(run("predict", path, "--classes", "ankle boot,t-shirt,bag")) == named(
        run("predict", path, "--classes", "ankle boot,t-shirt,bag", "--template", templates[0]))


def test_fit_refuses(fails, tmp_path):
    out = tmp_path / "out" / "fitted.safetensors"
    assert "Unknown method 'other'" in fails("fit", "--bank", "rsscn7", "--method", "other", "--out", out)
    assert "No bank 'other'" in fails("fit", "--bank", "other", "--out", out)
    assert "fewer than the 16 shots" in fails("fit", "--bank", "gtsrb", "--out", out)
    assert "shots must be at least 1" in fails("fit", "--bank", "gtsrb", "--shots", "0", "--out", out)
    assert "'--shots'" in fails("fit", "--bank", "gtsrb", "--shots", "many", "--out", out, raised=False)
    assert "Missing option '--out'" in fails("fit", "--bank", "gtsrb", raised=False)
    assert not out.parent.exists()


def test_predict_refuses(fails, tmp_path, boot):
    path = boot[0]
    either = "Give either --classes"
    assert either in fails("predict", path)
    assert either in fails("predict", path, "--classes", "a,b", "--classifier", "any.safetensors")
    absent = tmp_path / "[blue]absent.png"
    assert f"No such picture: {absent}" in fails("predict", path, absent, "--classes", "a,b")
    assert "no classifier file none.safetensors" in fails("predict", path, "--classifier", "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    assert "not a whole classifier" in fails("predict", path, "--classifier", tmp_path / "bad.safetensors")
    assert "holds no name" in fails("predict", path, "--classes", " , ")
    assert "has no {} for the class name" in fails("predict", path, "--classes", "a,b", "--template", "a photo")
    assert "top must be at least 1; got 0" in fails("predict", path, "--classes", "a,b", "--top", "0")
    assert "Unknown backbone 'other'" in fails("predict", path, "--classes", "a,b", "--backbone", "other")
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png is not a readable picture" in fails("predict", tmp_path / "text.png", "--classes", "a,b")


# ── what was computed is kept, whatever comes after ───────────────────────────────────────────────────────────────


def test_fit_keeps_the_classifier_of_a_bank_without_test_images(run, toy_bank, tmp_path):
    bank = toy_bank(backbone="mine").save(tmp_path / "bank.safetensors")
    loaded = cal.FeatureBank.load(bank)
    splits = loaded.splits | {"test": loaded.splits["test"].take(torch.tensor([], dtype=torch.long))}
    replace(loaded, splits=splits).save(bank)
    said = run("fit", "--bank", bank, "--shots", 2, "--method", "clip-adapter(alpha=0.2,steps=2)", "--out",
               tmp_path / "a.safetensors")
    assert "test accuracy not measured" in said
    assert cal.load_classifier(tmp_path / "a.safetensors").alpha == 0.2


def test_fit_takes_what_there_is_when_told_so(run, fails, toy_bank, tmp_path):
    bank = toy_bank(backbone="mine", train=3).save(tmp_path / "bank.safetensors")
    words = ["fit", "--bank", bank, "--shots", 9, "--method", "zero-shot", "--out", tmp_path / "a.safetensors"]
    assert "--allow-fewer" in fails(*words)
    assert "on 30 images" in run(*words, "--allow-fewer")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_output_without_alpha_gets_a_stand_in(encoding, tmp_path):
    words = ["fit", "--bank", "pacs-photo", "--shots", "1", "--method", "clip-adapter(alpha=0.2,steps=2)", "--out"]
    done = subprocess.run([sys.executable, "-m", "clip_adapter_lite", *words, str(tmp_path / "a.safetensors")],
                          capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0 and (tmp_path / "a.safetensors").exists()
    assert "alpha = 0.20" in " ".join(done.stdout.decode(encoding).split())


@pytest.mark.parametrize("error", [FloatingPointError("The loss is nan."), ModuleNotFoundError("Ray is not installed."),
                                   PermissionError("No."), IsADirectoryError("A folder.")],
                         ids=lambda error: type(error).__name__)
def test_every_error_that_can_be_mended_is_one_sentence(fails, monkeypatch, error):
    def fail():
        raise error
    monkeypatch.setattr(cli, "app", fail)
    assert fails("banks") == f"Error: {error}"


def test_one_unreadable_picture_does_not_keep_the_others_from_being_named(boot, tmp_path, capsys, monkeypatch):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    monkeypatch.setattr(sys, "argv", ["clip-adapter-lite", "predict", str(bad), str(boot[0]), "--classes", "boot, tree"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "bad.png is not a readable picture" in said.err
    assert "boot.png" in said.out and "%" in said.out and "bad.png" not in said.out


@pytest.mark.parametrize("name", ["study.json", "study.png", "STUDY.PNG", "folder"])
def test_a_table_that_its_companions_would_overwrite_is_refused_before_any_work(fails, tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(Run, "__call__", lambda self: pytest.fail("a run was started"))
    said = fails("compare", "--banks", "pacs-photo", "--methods", "zero-shot", "--shots", 1, "--seeds", 1, "--jobs", 1,
                 "--out", tmp_path / name)
    assert "cannot be the results' table" in said and ".csv" in said
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_no_command_wrote_is_kept_before_any_work(fails, tmp_path, monkeypatch, toy_bank):
    monkeypatch.setattr(cal.Method, "fit", lambda *_: pytest.fail("a fit was started"))
    bank = toy_bank(backbone="mine").save(tmp_path / "bank.safetensors")
    (tmp_path / "study.json").write_text("{\"mine\": 1}")
    (tmp_path / "drawn.png").write_bytes(b"\x89PNG mine")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "old.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "old.previous.csv").write_text("a,b\n1,2\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    small = ("--methods", "zero-shot", "--shots", 1, "--seeds", 1, "--jobs", 1, "--out")
    assert "is no classifier file" in fails("fit", "--bank", bank, "--shots", 1, "--out", bank)
    for name, said in (("study.csv", "study.json"), ("drawn.csv", "drawn.png"), ("table.csv", "table.csv"),
                       ("old.csv", "old.previous.csv")):
        assert f"{said} is there already and is no " in fails("compare", "--banks", bank, *small, tmp_path / name)
    assert "drawn.png is there already" in fails("sweep", "--banks", bank, "--shots", 1, "--out", tmp_path / "drawn.csv")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_runs_twice_over_ones_own_output(run, tmp_path, toy_bank):
    bank, seen = toy_bank(backbone="mine").save(tmp_path / "bank.safetensors"), []
    for _ in range(2):
        run("fit", "--bank", bank, "--shots", 1, "--method", "zero-shot", "--out", tmp_path / "c.safetensors")
        run("compare", "--banks", bank, "--methods", "zero-shot", "--shots", 1, "--seeds", 1, "--jobs", 1, "--out",
            tmp_path / "t.csv")
        run("sweep", "--banks", bank, "--method", "clip-adapter(steps=1)", "--grid", "alpha=0,1", "--grid", "reduction=1,4",
            "--shots", 1, "--seeds", 1, "--jobs", 1, "--out", tmp_path / "s.csv")
        seen.append([[{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(tmp_path / name)]
                     for name in ("t.csv", "s.csv")])
    assert seen[0] == seen[1] and [len(rows) for rows in seen[0]] == [1, 4]
    assert {path.name for path in tmp_path.glob("*.previous.csv")} == {"t.previous.csv", "s.previous.csv"}


def test_a_bank_without_test_images_is_refused_before_the_others_are_run(fails, tmp_path, toy_bank):
    good = toy_bank(backbone="mine").save(tmp_path / "good.safetensors")
    none = toy_bank(dataset="untested", backbone="mine", test=0).save(tmp_path / "none.safetensors")
    said = fails("compare", "--banks", f"{good},{none}", "--methods", "zero-shot", "--shots", 1, "--out",
                 tmp_path / "c" / "c.csv")
    assert "untested has no test images" in said and not (tmp_path / "c").exists()


def test_one_damaged_bank_does_not_keep_the_others_from_being_listed(run, cache, toy_bank):
    folder = cache / "banks" / "mine"
    toy_bank(backbone="mine").save(folder / "good.safetensors")
    (folder / "bad.safetensors").write_bytes(b"bad")
    said = run("banks", "--backbone", "mine")
    assert "good" in said and "bad.safetensors is not a complete feature bank" in said


def test_brackets_in_names_are_no_markup(run, cache, tmp_path, toy_bank):
    toy_bank(dataset="[/x]", backbone="mine").save(cache / "banks" / "mine" / "[red]x.safetensors")
    assert "[red]x" in run("banks", "--backbone", "mine")
    said = run("compare", "--backbone", "mine", "--banks", "[red]x", "--methods", "zero-shot", "--shots", 1, "--seeds", 1,
               "--jobs", 1, "--out", tmp_path / "[b]" / "c.csv")
    assert "[/x]" in said and f"Wrote {tmp_path}/[b]/c.csv" in said


def test_a_bank_with_a_comma_in_its_name_stands_in_quotes(run, toy_bank, cache, tmp_path):
    for name in ("cats, dogs", "other"):
        toy_bank(dataset=name, backbone="mine").save(cache / "banks" / "mine" / f"{name}.safetensors")
    run("compare", "--backbone", "mine", "--banks", "other,'cats, dogs'", "--methods", "zero-shot", "--shots", 1, "--seeds",
        1, "--jobs", 1, "--out", tmp_path / "c.csv")
    assert {row["dataset"] for row in rows_of(tmp_path / "c.csv")} == {"cats, dogs", "other"}
    run("compare", "--backbone", "mine", "--banks", "cats, dogs", "--methods", "zero-shot", "--shots", 1, "--seeds",
        1, "--jobs", 1, "--out", tmp_path / "c.csv")  # as `build` says it, pasted
    assert {row["dataset"] for row in rows_of(tmp_path / "c.csv")} == {"cats, dogs"}
