"""The paper's numbers beside ours: theirs equal the design notes, ours the runs, and every difference its two sides."""
import re
from pathlib import Path
from statistics import fmean, stdev

import pandas
import pytest
from conftest import expect_refusal, make_bank
from rich.console import Console
from typer.testing import CliRunner

import clip_adapter_lite as cal
from clip_adapter_lite import cli
from clip_adapter_lite.cli import reproduce as command
from clip_adapter_lite.experiments.reproduce import (
    AVERAGE,
    banks_in,
    beside,
    markdown,
    paper,
    paper_numbers,
    reproduce,
    settings,
)
from clip_adapter_lite.experiments.runs import COLUMNS
from clip_adapter_lite.transfer import transfer

SHARED = Path(__file__).parent.parent.parent / "shared"
RN50 = "RN50-quickgelu"
ELEVEN = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397",
          "dtd", "eurosat", "ucf101")
AS_THEIRS = {"weights_tag": "openai", "preprocessing": {"resize_mode": "shortest"}}
QUICK = dict(methods=["zero-shot", cal.CLIPAdapter(alpha=0.5, steps=3)], shots=[1, 2], seeds=[1, 2])
ADAPTER = "clip-adapter(alpha=0.5, steps=3)"


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """No accuracy matters here, so that the default method need not be trained to the end."""
    from clip_adapter_lite.methods import clip_adapter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_adapter, "train", lambda *args, steps, train=clip_adapter.train, **options:
                      train(*args, steps=min(steps, 10), **options))
        yield


def bank_of(dataset, classes, width=16, **fields):
    """Noisy clouds that pass for RN50 features of one of the paper's datasets."""
    return make_bank(classes=classes, width=width, noise=3.0,
                     **dict(dataset=dataset, backbone=RN50, meta=AS_THEIRS) | fields)


def row_of(table, dataset, method, shots):
    rows = table[(table.dataset == dataset) & (table.method == method) & (table.shots == shots)]
    assert len(rows) == 1
    return rows.iloc[0]


# ── theirs ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def notes():
    path = SHARED / "design" / "paper.md"
    if not path.is_file():
        pytest.skip("the design notes are not on this machine")
    return path.read_text(encoding="utf-8")


def slashed(notes, pattern):
    """The numbers a/b/c… that follow `pattern`."""
    return [float(number) for number in re.search(pattern + r" ([\d./]+\d)", notes)[1].split("/")]


def test_the_numbers_are_those_of_the_notes_marked_verified_and_no_others(notes):
    expected = {}
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in notes.splitlines() if line.startswith("|")]
    by_title = {row[0]: [float(cell) for cell in row[1:]] for row in table if len(row) == 7 and re.match(r"[\d.]+$", row[1])}
    titles = {settings()[dataset][0]: dataset for dataset in paper()["datasets"]}
    assert set(by_title) == {*titles, "average [D]"}
    for title, dataset in titles.items():
        zero, *few = by_title[title]
        expected[dataset, RN50, "zero-shot", 0] = {zero}
        expected |= {(dataset, RN50, "clip-adapter", s): {x} for s, x in zip((1, 2, 4, 8, 16), few)}
    imagenet = notes[notes.index("ImageNet, RN50, CLIP style [V]"):]
    for method, pattern in (("linear-probe", "linear probe"), ("coop", "CoOp")):
        for shots, x in zip((1, 2, 4, 8, 16), slashed(imagenet, pattern)):
            expected["imagenet", RN50, method, shots] = {x}
    tip_f, backbones = "tip-adapter(finetune=True)", (RN50, "RN101-quickgelu", "ViT-B-32-quickgelu", "ViT-B-16-quickgelu")
    named = {"zero-shot": "zero-shot", "coop": "CoOp", "clip-adapter": "CLIP-Adapter", tip_f: "Tip-F"}
    part = imagenet[imagenet.index("16 shots by backbone"):imagenet.index("Shift")]
    for method, pattern in named.items():
        for backbone, x in zip(backbones, slashed(part, pattern)):
            expected.setdefault(("imagenet", backbone, method, 0 if method == "zero-shot" else 16), set()).add(x)
    part = imagenet[imagenet.index("Shift"):]
    for method, pattern in {**named, "linear-probe": "linear probe"}.items():
        source, *targets = slashed(part, pattern)
        assert source in expected["imagenet", RN50, method, 0 if method == "zero-shot" else 16]
        for target, x in zip(("imagenetv2", "imagenet_sketch"), targets):
            expected[f"imagenet-to-{target}", RN50, method, 0 if method == "zero-shot" else 16] = {x}
    ours = {}
    for series in paper()["numbers"]:
        assert series["source"] in ("author", "tip")
        for shots, x in series["accuracy"].items():
            ours.setdefault((series["dataset"], series["backbone"], series["method"], int(shots)), set()).add(x)
    assert ours == expected
    derived = {series["method"]: list(series["accuracy"].values()) for series in paper()["averages"]}
    assert derived == {"tip-adapter": slashed(notes, "Tip-Adapter"), tip_f: slashed(notes, "Tip-Adapter-F"),
                       "coop": slashed(notes, re.escape("CoOp (listed by APE)"))}
    averages = [row_of(nothing(), AVERAGE, method, s).paper for method, s in
                (("zero-shot", 0), *(("clip-adapter", s) for s in (1, 2, 4, 8, 16)))]
    assert averages == by_title["average [D]"]


def nothing():
    return beside(pandas.DataFrame(columns=COLUMNS), [], RN50)


def test_the_averages_are_derived_from_the_eleven_and_say_so():
    table, numbers = nothing(), paper_numbers(RN50)
    for shots in (1, 2, 4, 8, 16):
        average = row_of(table, AVERAGE, "clip-adapter", shots)
        assert average.paper == round(fmean(numbers[dataset, "clip-adapter", shots][0] for dataset in ELEVEN), 2)
    averages = table[table.dataset == AVERAGE]
    assert averages.source.str.startswith("derived").all() and averages.remarks.str.startswith("derived").all()
    assert not table[table.dataset != AVERAGE].source.str.contains("derived").any()
    assert set(averages.method) == {"zero-shot", "clip-adapter", "tip-adapter", "tip-adapter(finetune=True)", "coop"}


def test_the_eleven_are_those_of_the_table_of_datasets():
    assert tuple(paper()["datasets"]) == ELEVEN
    assert settings()["dtd"] == ("DTD", 47, 1692) and settings()["oxford_pets"] == ("OxfordPets", 37, 3669)
    assert settings()["imagenet-to-imagenetv2"] == ("ImageNet → ImageNetV2", 1000, 10000)
    assert {series["dataset"] for series in paper()["numbers"]} == set(settings())


def test_another_backbone_has_its_own_number_where_there_is_one():
    numbers = paper_numbers("ViT-B-16-quickgelu")
    assert numbers["imagenet", "clip-adapter", 16][:2] == (71.13, "ViT-B-16-quickgelu")
    assert numbers["imagenet", "zero-shot", 0][:2] == (68.73, "ViT-B-16-quickgelu")
    assert numbers["imagenet", "clip-adapter", 8][:2] == (62.68, RN50)
    assert paper_numbers(RN50)["imagenet", "zero-shot", 0][0] == 60.32  # the author's, not Tip-Adapter's 60.33
    assert set(paper_numbers("pocket")) == set(paper_numbers(RN50))
    average = row_of(beside(pandas.DataFrame(columns=COLUMNS), [], "ViT-B-16-quickgelu"), AVERAGE, "clip-adapter", 16)
    assert (average.paper, average.paper_backbone) == (74.44, RN50)  # not a mixture of backbones


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A reproduction on two synthetic banks: EuroSAT as in the paper but for its size, and one that the paper has not."""
    out = tmp_path_factory.mktemp("reproduce")
    banks = [bank_of("eurosat", 10), bank_of("mine", 3)]
    return reproduce(banks, out=out, **{**QUICK, "methods": ["zero-shot", "clip-adapter"], "shots": [1]}), out, banks


def test_ours_are_the_runs_and_the_difference_is_ours_minus_theirs(study):
    table, out, banks = study
    runs = pandas.read_csv(out / "runs.csv")
    accuracies = [cal.CLIPAdapter().fit(e := banks[0].episode(1, seed)).accuracy(e.test) for seed in (1, 2)]
    assert runs[(runs.dataset == "eurosat") & (runs.method == "clip-adapter")].accuracy.tolist() == accuracies
    row = row_of(table, "eurosat", "clip-adapter", 1)
    assert accuracies[0] != accuracies[1]
    assert (row.ours, row["std"], row.seeds) == (round(100 * fmean(accuracies), 2), round(100 * stdev(accuracies), 2), 2)
    assert (row.paper, row.paper_backbone) == (61.40, RN50) and row.difference == round(row.ours - 61.40, 2)
    zero = row_of(table, "eurosat", "zero-shot", 0)
    episode = banks[0].episode(1, 1)
    assert zero.ours == round(100 * cal.ZeroShot().fit(episode).accuracy(episode.test), 2) and zero.seeds == 1
    assert zero.difference == round(zero.ours - 37.52, 2)
    assert len(runs) == 2 * (1 + 2)  # zero-shot once a bank


def test_the_csv_read_back_is_the_table(study):
    table, out, _ = study
    assert sorted(path.name for path in out.iterdir()) == ["reproduce.csv", "reproduce.md", "runs.csv", "runs.json"]
    back = pandas.read_csv(out / "reproduce.csv", keep_default_na=False, na_values=[""])
    pandas.testing.assert_frame_equal(back, table.replace({"remarks": {"": None}}), check_dtype=False)


def test_the_page_says_what_the_csv_says(study):
    _, out, _ = study
    csv = pandas.read_csv(out / "reproduce.csv")
    page, seen = (out / "reproduce.md").read_text(encoding="utf-8"), 0
    titles = {title: name for name, (title, *_) in settings().items()}
    for section in page.split("\n## ")[1:]:
        method, *lines = section.splitlines()
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]
        for cells in rows[2:]:
            for head, cell in zip(rows[0][1:-3], cells[1:-3]):
                if cell == "–":
                    continue
                seen += 1
                row = row_of(csv, titles.get(cells[0], cells[0]), method, int(head.split()[0].replace("no", "0")))
                theirs, ours, *difference = cell.split(" / ")
                assert theirs == ("–" if pandas.isna(row.paper) else f"{row.paper:.2f}")
                if row.seeds == 0:
                    assert ours == "not measured" and not difference
                    continue
                assert float(ours.split(" ± ")[0]) == row.ours
                assert ("±" in ours) == (row.seeds > 1)
                if difference:
                    assert float(difference[0]) == pytest.approx(float(ours.split(" ± ")[0]) - float(theirs), abs=0.0051)
                    assert float(difference[0]) == row.difference
    assert seen == len(csv)
    for said in ("issue #7", "CLIP-style preprocessing", "α searched per dataset, on a split that is not stated",
                 "min(shots, 4) validation images", "preprocessing: CLIP style", "openai"):
        assert said in page, said


def test_what_has_no_bank_or_no_run_is_not_measured(study):
    table, *_ = study
    measured = table[table.seeds > 0]
    assert set(zip(measured.dataset, measured.method, measured.shots)) == {
        (dataset, *which) for dataset in ("eurosat", "mine") for which in (("zero-shot", 0), ("clip-adapter", 1))}
    others = table[table.seeds == 0]
    assert others.ours.isna().all() and others.difference.isna().all()
    assert others.remarks.str.contains("not measured").all()
    assert row_of(table, "eurosat", "clip-adapter", 16).remarks == "not measured: no run"
    assert row_of(table, "dtd", "clip-adapter", 16).remarks == "not measured: no bank"
    assert row_of(table, AVERAGE, "clip-adapter", 1).remarks == "derived; not measured on all eleven"


@pytest.mark.parametrize("change, remark, differs", [
    ({}, "60 test images, the paper's 8100", True),
    (dict(meta=AS_THEIRS | {"preprocessing": {"resize_mode": "squash"}}), "preprocessing: CoOp style", True),
    (dict(meta={}), "weights not recorded; 60 test images, the paper's 8100; preprocessing: not recorded", True),
    (dict(train=1), "10 classes have fewer than 2 training images", True),
    (dict(meta=AS_THEIRS | {"weights_tag": "mine"}), "other features: weights 'mine', the paper's are OpenAI's", False),
    (dict(classes=9), "9 classes, the paper's 10", False),
    (dict(backbone="pocket"), f"other features: pocket, the paper's are of {RN50}", False)])
def test_a_row_says_what_is_not_as_in_the_paper(change, remark, differs, tmp_path):
    bank = bank_of("eurosat", **{"classes": 10, "train": 2, **change})
    method = cal.CLIPAdapter(alpha=0.5, steps=1)
    runs = cal.compare([bank], [method], [2], [1], allow_fewer=True).assign(method="clip-adapter")
    row = row_of(beside(runs, [bank], bank.backbone), "eurosat", "clip-adapter", 2)
    assert remark in row.remarks and row.paper == 63.90 and row.seeds == 1
    assert ("fewer" in row.remarks) == ("fewer" in remark)
    assert row.ours == round(100 * runs.accuracy[0], 2)
    if differs:
        assert row.difference == round(row.ours - 63.90, 2)
    else:
        assert pandas.isna(row.difference)
    assert f"| EuroSAT | 61.40 / not measured | 63.90 / {row.ours:.2f}" in markdown(
        beside(runs, [bank], bank.backbone), [bank], bank.backbone)


def test_our_average_takes_all_eleven_as_in_the_paper():
    banks = [bank_of(dataset, settings()[dataset][1], width=4, train=1, val=1, test=1) for dataset in ELEVEN]
    runs = pandas.DataFrame([dict(zip(COLUMNS, (dataset, RN50, "clip-adapter", 16, seed, 20, 0.5 + 0.01 * i + 0.002 * seed)))
                             for i, dataset in enumerate(ELEVEN) for seed in (1, 2)], columns=COLUMNS)
    row = row_of(beside(runs, banks, RN50), AVERAGE, "clip-adapter", 16)
    assert (row.ours, row.paper, row.difference, row.seeds) == (55.3, 74.44, round(55.3 - 74.44, 2), 2)
    without = row_of(beside(runs[runs.dataset != "dtd"], banks, RN50), AVERAGE, "clip-adapter", 16)
    assert pandas.isna(without.ours) and without.seeds == 0
    tip = beside(runs.assign(method="tip-adapter"), banks, RN50)  # its single numbers are not in the data
    assert row_of(tip, AVERAGE, "tip-adapter", 16).difference == round(55.3 - 70.32, 2)
    odd = [bank_of("dtd", 46, width=4) if bank.dataset == "dtd" else bank for bank in banks]
    assert pandas.isna(row_of(beside(runs, odd, RN50), AVERAGE, "clip-adapter", 16).difference)


def test_resume_adds_to_what_is_there(tmp_path, monkeypatch):
    banks = [bank_of("eurosat", 10)]
    reproduce(banks, out=tmp_path, **{**QUICK, "seeds": [1]})
    fits, fit = [], cal.Method.fit
    monkeypatch.setattr(cal.Method, "fit", lambda self, episode: (fits.append((self.name, episode.shots, episode.seed)),
                                                                  fit(self, episode))[1])
    table = reproduce(banks, out=tmp_path, resume=True, **QUICK)
    assert fits == [("clip-adapter", 1, 2), ("clip-adapter", 2, 2)]
    assert [row_of(table, "eurosat", ADAPTER, s).seeds for s in (1, 2)] == [2, 2]
    pandas.testing.assert_frame_equal(reproduce(banks, out=tmp_path / "fresh", **QUICK), table)
    fewer = reproduce(banks, out=tmp_path, resume=True, **{**QUICK, "shots": [1]})
    pandas.testing.assert_frame_equal(fewer, table)  # the file's other runs are shown too


def test_a_bank_that_the_protocol_cannot_use_is_not_run_and_says_why(tmp_path):
    banks = [bank_of("eurosat", 10, val=0), bank_of("dtd", 47, train=[0] + 46 * [1]), bank_of("mine", 3)]
    searched = cal.CLIPAdapter(alpha="val", grid=(0.0, 0.2), steps=1)
    table = reproduce(banks, out=tmp_path, **{**QUICK, "shots": [1], "methods": ["zero-shot", searched]})
    assert row_of(table, "eurosat", "clip-adapter", 1).remarks == "not measured: no val images"
    assert row_of(table, "dtd", "zero-shot", 0).remarks == "not measured: a class without training images"
    assert set(table[table.seeds > 0].dataset) == {"mine"}
    assert "- eurosat: not run, no val images" in (tmp_path / "reproduce.md").read_text(encoding="utf-8")


def test_a_bank_without_validation_images_is_run_where_the_method_can_do_without(tmp_path):
    table = reproduce([bank_of("eurosat", 10, val=0), bank_of("mine", 3)], out=tmp_path, seeds=[1], shots=[1, 2],
                      methods=["zero-shot", cal.CLIPAdapter(steps=2)])
    label = cal.CLIPAdapter(steps=2).label
    assert [row_of(table, "eurosat", label, s).labelled for s in (1, 2)] == [1, 2]
    assert [row_of(table, "mine", label, s).labelled for s in (1, 2)] == [2, 4]  # with as many validation images
    assert row_of(table, "mine", "zero-shot", 0).labelled == 0
    assert "no validation images: shots only" in row_of(table, "eurosat", label, 1).remarks
    page = (tmp_path / "reproduce.md").read_text(encoding="utf-8")
    assert "| labelled | seeds |" in page and "| 2 / 4 | 1 |" in page


def test_imagenets_shift_is_a_fit_on_one_and_a_test_on_the_other(tmp_path):
    source, target = bank_of("imagenet", 4, train=16), bank_of("imagenetv2", 4, seed=3, train=0, val=0)
    method = cal.CLIPAdapter(alpha=0.5, steps=3)
    table = reproduce([source, target, bank_of("imagenet_sketch", 5, train=0, val=0)], out=tmp_path,
                      methods=["zero-shot", method], shots=[1, 16], seeds=[1, 2])
    shift = table[(table.dataset == "imagenet-to-imagenetv2") & (table.seeds > 0)].set_index("method")
    expected = [100 * transfer(method.fit(source.episode(16, seed)), target).accuracy(target.splits["test"])
                for seed in (1, 2)]
    assert shift.ours[ADAPTER] == round(fmean(expected), 2) and shift.shots.to_dict() == {"zero-shot": 0, ADAPTER: 16}
    assert shift.paper["zero-shot"] == 53.27 and "4 classes, the paper's 1000" in shift.remarks["zero-shot"]
    sketch = row_of(table, "imagenet-to-imagenet_sketch", "zero-shot", 0)
    assert "class 'class 4' is not one" in sketch.remarks and sketch.paper == 35.44
    page = (tmp_path / "reproduce.md").read_text(encoding="utf-8")
    assert "- imagenet_sketch: not run" in page and "- imagenetv2: not run" not in page


def test_banks_of_other_backbones_are_left_alone(tmp_path):
    table = reproduce([bank_of("eurosat", 10, backbone="other")], out=tmp_path, **QUICK)
    assert not table.seeds.any() and not (tmp_path / "runs.csv").exists()


def test_wrong_requests_are_refused_before_any_work(tmp_path):
    bank = bank_of("eurosat", 10)
    with expect_refusal("Unknown method 'clipadapter'", ValueError):
        reproduce([bank], methods=["clipadapter"], out=tmp_path / "r")
    with expect_refusal("shots must be at least 1"):
        reproduce([bank], shots=[0], out=tmp_path / "r")
    with expect_refusal("engine must be one of joblib, ray", ValueError):
        reproduce([bank], engine="dask", out=tmp_path / "r")
    with expect_refusal("asked for twice", ValueError):
        reproduce([bank, bank], out=tmp_path / "r")
    with expect_refusal(f"There is no folder {tmp_path / 'none'}", FileNotFoundError):
        banks_in(tmp_path / "none")
    (tmp_path / "broken.safetensors").write_bytes(b"not a bank")
    with expect_refusal("broken.safetensors is not a complete feature bank"):
        banks_in(tmp_path)
    assert not (tmp_path / "r").exists()


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def typed(monkeypatch):
    """Runs the command, which must succeed, on a wide terminal; returns what it printed."""
    monkeypatch.setattr(command, "console", Console(width=250))

    def run(*words) -> str:
        result = CliRunner().invoke(cli.app, ["reproduce", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout
    return run


def test_the_command_prints_what_it_measured_and_where_it_went(typed, tmp_path):
    bank_of("eurosat", 10).save(tmp_path / "banks" / "eurosat.safetensors")
    bank_of("dtd", 47, backbone="other").save(tmp_path / "banks" / "dtd.safetensors")
    out = tmp_path / "out"
    words = ("--banks", tmp_path / "banks", "--shots", 1, "--seeds", 1, "--jobs", 1, "--out", out)
    said = typed(*words)
    row = row_of(pandas.read_csv(out / "reproduce.csv"), "eurosat", "clip-adapter", 1)
    assert f"{row.ours:.1f} ({row.difference:+.1f})" in said and "ours minus the paper's" in said
    counts = dict(re.findall(r"^(zero-shot|clip-adapter)\b.*?labelled images a\s+class:\s+([\d/]+)", said, re.M | re.S))
    assert counts == {"zero-shot": "0", "clip-adapter": "2"}  # one shot, and one validation image to learn the ratio from
    assert re.search(r"Not measured: imagenet, .*dtd", said) and str(out / "reproduce.md") in said
    before = (out / "runs.csv").read_text()
    assert typed(*words, "--resume").splitlines()[-3:] == said.splitlines()[-3:]
    assert (out / "runs.csv").read_text() == before  # seconds and all: nothing was run again


def test_a_damaged_bank_is_named_and_the_others_are_run(typed, tmp_path):
    bank_of("eurosat", 10).save(tmp_path / "banks" / "eurosat.safetensors")
    (tmp_path / "banks" / "dtd.safetensors").write_bytes(b"bad")
    said = typed("--banks", tmp_path / "banks", "--methods", "zero-shot", "--jobs", 1, "--out", tmp_path / "out")
    assert re.search(r"Passed over: .*dtd\.safetensors is not a complete feature bank", said)
    table = pandas.read_csv(tmp_path / "out" / "reproduce.csv")
    assert row_of(table, "eurosat", "zero-shot", 0).seeds == 1
    assert "dtd.safetensors is not a complete" in row_of(table, "dtd", "zero-shot", 0).remarks


def test_a_page_that_this_did_not_write_is_kept(tmp_path):
    for name in ("reproduce.md", "reproduce.csv"):
        (tmp_path / name).write_text("mine")
        with expect_refusal(f"{name} is there already", OSError):
            reproduce([bank_of("eurosat", 10)], out=tmp_path, **QUICK)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
        (tmp_path / name).unlink()


def test_without_a_bank_the_command_says_how_to_build_one(typed, tmp_path, cache):
    said = typed("--backbone", RN50, "--out", tmp_path / "out")
    target = cache / "banks" / RN50 / "oxford_pets.safetensors"
    assert f"build --dataset oxford_pets --root DATA --backbone {RN50} --out {target}`" in said and "pull" in said
    table = pandas.read_csv(tmp_path / "out" / "reproduce.csv")
    assert not table.seeds.any() and table.ours.isna().all() and len(table) == len(nothing())
    page = (tmp_path / "out" / "reproduce.md").read_text(encoding="utf-8")
    assert "63.59 / not measured" in page and "±  " not in page


def test_the_help_teaches(typed):
    said = typed("--help")
    assert all(word in said for word in ("--backbone", "--banks", "--methods", "--shots", "--seeds", "--out", "--resume",
                                         "--jobs", "--engine", "Example", "not measured"))
