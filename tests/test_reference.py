"""The committed reference results are whole, belong to the bundled banks and today's settings, and can be computed again."""
import json

import pandas
import pytest

import clip_adapter_lite as cal
from clip_adapter_lite.banks import FeatureBank
from clip_adapter_lite.experiments import reference as committed
from clip_adapter_lite.experiments.runs import Run
from clip_adapter_lite.making import guide
from clip_adapter_lite.making import reference as ref


def test_every_bank_method_and_shots_is_there_with_three_or_ten_seeds():
    table = cal.reference()
    cells = table.groupby(["dataset", "method", "shots"]).seed.apply(list)
    wanted = {(name, method, shots) for name in cal.list_banks() for method in ref.MEASURED for shots in ref.SHOTS
              if shots <= FeatureBank.load(name).max_shots}
    assert set(cells.index) == wanted
    assert all(seeds in ([1, 2, 3], list(range(1, 11))) for seeds in cells)
    assert table.accuracy.between(0, 1).all() and (table.backbone == "pocket").all()


def test_it_was_computed_from_the_bundled_banks_with_todays_settings():
    about = cal.reference().attrs
    assert about["banks"] == {name: FeatureBank.load(name).hash for name in cal.list_banks()}
    assert about["methods"] == {label: repr(method) for label, method in ref.MEASURED.items()}
    assert all(len(commit) == 40 for commit in about["commits"]) and about["commits"], "a commit without local changes"
    assert {"torch", "clip-adapter-lite"} <= set(about["versions"]) and "validation" in about["protocol"]


def test_zero_shot_is_what_the_banks_say_by_independent_arithmetic():
    table = cal.reference()
    for name in ("cifar10", "sun18"):
        test, bank = FeatureBank.load(name).splits["test"], FeatureBank.load(name)
        nearest = (test.features.double() @ bank.text_features.double().T).argmax(1)  # W has unit rows: norms do not matter
        rows = table[(table.dataset == name) & (table.method == "zero-shot")]
        assert (rows.accuracy - (nearest == test.labels).double().mean().item()).abs().max() < 1.5 / len(test)


@pytest.mark.slow
def test_named_cells_computed_again_agree():
    table = cal.reference()
    rows = table[(table.seed == 2) & (table.shots == 2) & table.dataset.isin(["rsscn7", "dtd10"]) & (table.method != "coop")]
    again = cal.recompute(rows, jobs=1)
    assert len(again) == 2 * (len(ref.MEASURED) - 1)
    assert (again.accuracy - again.recomputed).abs().max() <= 0.015  # a few of 180 images, on other machines


def test_more_seeds_are_run_where_the_median_fit_takes_under_a_second(toy_bank):
    bank, quick, slow = toy_bank(), cal.ZeroShot(), cal.LinearProbe()
    runs = [Run(bank, method, 1, seed) for method in (quick, slow) for seed in (1, 2, 3)]
    rows = [{"seconds": s} for s in ("0.1", 5.0, 0.2, 0.1, 1.2, 1.1)]  # text where it was read back from the CSV
    assert [(r.method, r.shots, r.seed) for r in ref.further_runs(runs, rows)] == [(quick, 1, s) for s in range(4, 11)]


def test_main_writes_a_sorted_table_says_where_it_comes_from_and_resumes(toy_bank, tmp_path, monkeypatch):
    (tmp_path / "banks").mkdir()
    bank = toy_bank(dataset="toy", backbone="pocket", train=2)
    bank.save(tmp_path / "banks" / "toy.safetensors")
    monkeypatch.setattr(ref, "BUNDLED", tmp_path)
    monkeypatch.setattr(ref, "RESULTS", tmp_path / "reference.csv")
    monkeypatch.setattr(committed, "RESULTS", tmp_path / "reference.csv")
    monkeypatch.setattr(ref, "list_banks", lambda: ["toy", "mine"])  # "mine" is in the cache and not bundled
    monkeypatch.setattr(ref.FeatureBank, "load", lambda name: bank)
    monkeypatch.setattr(ref, "MEASURED", {m.label: m for m in (cal.ZeroShot(), cal.CLIPAdapter(alpha=0.2, steps=2))})
    ref.main(work=tmp_path / "work.csv", jobs=1)
    table = cal.reference()
    assert list(zip(table.method, table.shots, table.seed)) == [
        (m, s, seed) for m in ("zero-shot", "clip-adapter(alpha=0.2, steps=2)") for s in (1, 2) for seed in range(1, 11)]
    assert table.attrs["banks"] == {"toy": bank.hash} and len(table.attrs["commits"]) == 1
    monkeypatch.setattr(cal.Method, "fit", lambda *_: pytest.fail("a finished run was done again"))
    ref.main(work=tmp_path / "work.csv", jobs=1)
    pandas.testing.assert_frame_equal(cal.reference(), table)
    assert json.loads((tmp_path / "reference.json").read_text())["commits"] == table.attrs["commits"]


def test_the_page_for_practitioners_is_what_the_reference_says():
    assert guide.PAGE.read_text(encoding="utf-8") == guide.page(), "run python -m clip_adapter_lite.making.guide"


def made_up(accuracy: dict[str, float], shots: int) -> pandas.DataFrame:
    """Runs of four banks and three seeds around each method's accuracy; all vary alike, GDA-CLIP by 0.01 more."""
    return pandas.DataFrame([
        {"dataset": f"bank {b}", "backbone": "pocket", "method": method, "shots": shots, "seed": seed,
         "labelled": 0.0 if method == "zero-shot" else 2.0 * shots if method == "gda" else shots,
         "accuracy": mean + 0.05 * b + (0.01 if (b + seed) % 2 and method == "gda" else 0)}
        for method, mean in accuracy.items() for b in range(4) for seed in (1, 2, 3)])


def test_the_page_ranks_by_means_names_what_cannot_be_told_apart_and_counts_labels(monkeypatch):
    table = pandas.concat([made_up({"zero-shot": 0.3, "gda": 0.394, "tip-adapter": 0.4, "clap": 0.35}, 1),
                           made_up({"zero-shot": 0.3, "gda": 0.5, "tip-adapter": 0.4, "clap": 0.45}, 4)])
    monkeypatch.setattr(guide, "reference", lambda: table)
    lines = guide.page().splitlines()
    assert ("| 1 shot | **Tip-Adapter** 47.5 (GDA-CLIP) | **Tip-Adapter** 47.5 | **Tip-Adapter** 47.5 (GDA-CLIP) |"
            in lines)
    assert "| 4 shots | **GDA-CLIP** 58.0 | **CLAP** 52.5 | **GDA-CLIP** 58.0 |" in lines
    assert "| GDA-CLIP | 47.4 (2) | 58.0 (8) |" in lines and "| zero-shot CLIP | 37.5 (0) | 37.5 (0) |" in lines
    assert "| GDA-CLIP | +1.77 |" in lines and "| CLAP | +3.33 |" in lines  # 10.6 points over 6 labels, 10 over 3
    assert "Zero-shot CLIP, which needs no picture, has 37.5 %." in lines
