"""Studies: planned before any work, resumed after a kill, the same on any number of processes."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pytest
import torch

import clip_adapter_lite as cal
from clip_adapter_lite.experiments.compare import pending
from clip_adapter_lite.experiments.runs import COLUMNS, plan, read_rows

SMALL = dict(methods=["zero-shot", cal.CLIPAdapter(alpha=0.5, steps=3)], shots=[1, 2], seeds=[1, 2])


@pytest.fixture
def banks(toy_bank):
    return [toy_bank(classes=3, dataset="one"), toy_bank(classes=4, dataset="two", seed=5)]


def without_time(table):
    return table.drop(columns="seconds")


def test_one_row_for_each_bank_method_shots_and_seed_in_that_order(banks):
    table = cal.compare(banks, **SMALL)
    assert tuple(table.columns) == COLUMNS
    assert list(zip(table.dataset, table.method, table.shots, table.seed)) == [
        (d, m, s, seed) for d in ("one", "two") for m in ("zero-shot", "clip-adapter(alpha=0.5, steps=3)")
        for s in (1, 2) for seed in (1, 2)]


@pytest.mark.parametrize("shots, seeds", [(2, 1), (numpy.int64(2), torch.tensor(1)), (numpy.array([2]), range(1, 2)),
                                          ((s for s in [2]), pandas.Series([1])), (torch.tensor([2]), {1})],
                         ids=["numbers", "scalars", "arrays", "columns", "sets"])
def test_one_of_a_kind_need_not_be_in_a_list(banks, shots, seeds):
    wanted = cal.compare([banks[0]], ["zero-shot"], [2], [1])
    for bank, method in ((banks[0], "zero-shot"), ([banks[0]], cal.ZeroShot()), ((b for b in banks[:1]), ("zero-shot",))):
        table = cal.compare(bank, method, 2, 1)
        pandas.testing.assert_frame_equal(without_time(table), without_time(wanted))
    pandas.testing.assert_frame_equal(without_time(cal.compare(banks[0], "zero-shot", shots, seeds)), without_time(wanted))


@pytest.mark.parametrize("study, says", [
    (dict(banks="caltech101"), "banks must be feature banks; got 'caltech101', so give FeatureBank.load(name)."),
    (dict(banks=[None]), "banks must be feature banks; got None"), (dict(methods=cal.ZeroShot), "methods must be labels"),
    (dict(methods=[3]), "such as ZeroShot(); got 3."), (dict(methods="zero-shots"), "Unknown method 'zero-shots'"),
    (dict(shots="16"), "shots must be a whole number; got '16'"),
    (dict(shots=[1.0]), "shots must be a whole number; got 1.0"),
    (dict(seeds=None), "seeds must be a whole number; got None"),
    (dict(seeds=[True]), "seeds must be a whole number; got True"),
    (dict(shots=[]), "Nothing to run"), (dict(shots=[1, numpy.int64(1)]), "is asked for twice")])
def test_a_study_of_something_else_is_refused_before_any_work(banks, expect_refused, study, says):
    with expect_refused(says, ValueError):
        cal.compare(**dict(banks=banks, methods=["zero-shot"], shots=[1], seeds=[1]) | study)


def test_numbers_of_numpy_go_into_the_files_of_a_study(banks, tmp_path):
    study = dict(methods=cal.CLIPAdapter(alpha=numpy.float32(0.5), steps=numpy.int64(1)), seeds=numpy.arange(1, 3))
    table = cal.compare(banks, shots=numpy.int64(1), **study, out=str(tmp_path / "r.csv"))
    again = cal.compare(banks, ["clip-adapter(alpha=0.5, steps=1)"], [1], [1, 2], out=tmp_path / "r.csv", resume=True)
    pandas.testing.assert_frame_equal(again, table)  # the seconds too, so nothing was run again
    assert pending(banks, shots=1, **study, out=str(tmp_path / "r.csv")).title == "0 of 4 runs to do"


@pytest.mark.parametrize("spoil, says", [
    (lambda t: t[:0], "The table has no runs"), (lambda t: pandas.DataFrame(), "no column 'dataset' (it has )"),
    (lambda t: t.drop(columns="shots"), "no column 'shots'"), (lambda t: None, "Expected the table of cal.compare"),
    (lambda t: t.to_dict(), "a DataFrame; got dict"),
    (lambda t: t.assign(accuracy=[0.5, math.nan]), "without a finite accuracy"),
    (lambda t: t.assign(accuracy="good"), "without a finite accuracy")])
def test_a_table_that_says_nothing_has_no_summary(banks, expect_refused, spoil, says):
    table = cal.compare(banks, "zero-shot", 1, 1)
    assert cal.summarise(table)["mean"].tolist() == table.accuracy.tolist()
    with expect_refused(says, ValueError):
        cal.summarise(spoil(table))


def test_rows_hold_what_a_fit_by_hand_gives(banks):
    table = cal.compare(banks, **SMALL)
    row = table[(table.dataset == "two") & (table.shots == 2) & (table.seed == 1) & (table.steps == 3)].iloc[0]
    episode = banks[1].episode(2, 1)
    fitted = cal.CLIPAdapter(alpha=0.5, steps=3).fit(episode)
    right = (fitted.logits(episode.test.features).argmax(1) == episode.test.labels).sum().item()
    assert row.accuracy == right / len(episode.test)
    assert (row.val_accuracy, row.alpha, row.parameters) == (fitted.accuracy(episode.val), 0.5, 2 * 16 * 4)
    assert row.seconds > 0


def test_zero_shot_is_repeated_over_shots(banks):
    table = cal.compare(banks, **SMALL)
    zero = table[table.method == "zero-shot"].groupby("dataset").accuracy
    assert (zero.nunique() == 1).all() and (zero.size() == 4).all()
    assert table[table.method == "zero-shot"].alpha.isna().all()


@pytest.mark.slow
def test_two_processes_give_the_same_rows_in_the_same_order(banks):
    pandas.testing.assert_frame_equal(without_time(cal.compare(banks, **SMALL, jobs=2)),
                                      without_time(cal.compare(banks, **SMALL)))


def test_the_csv_read_back_equals_the_table(banks, tmp_path):
    table = cal.compare(banks, **SMALL, out=tmp_path / "r.csv")
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "r.csv"), table)
    about = json.loads((tmp_path / "r.json").read_text())
    assert about["banks"] == {f"{b.dataset} (none)": b.hash for b in banks}
    assert "torch" in about["versions"] and "validation" in about["protocol"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["r.csv", "r.json"]


def test_too_few_images_are_named_before_any_run(toy_bank, tmp_path, expect_refused, monkeypatch):
    monkeypatch.setattr(cal.Method, "fit", lambda *_: pytest.fail("a run was started"))
    with expect_refused("'class 1' has 2 training images"):
        cal.compare([toy_bank(classes=3), toy_bank(classes=3, train=[5, 2, 5], dataset="short")],
                    ["zero-shot"], [1, 4], [1], out=tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_a_short_class_gives_what_it_has_when_fewer_are_allowed(toy_bank):
    bank = toy_bank(classes=3, train=[5, 2, 5])
    table = cal.compare([bank], [cal.CLIPAdapter(alpha=0.5, steps=3)], [4], [1], allow_fewer=True)
    fitted = cal.CLIPAdapter(alpha=0.5, steps=3).fit(bank.episode(4, 1, allow_fewer=True))
    assert table.accuracy[0] == fitted.accuracy(bank.episode(4, 1, allow_fewer=True).test)


@pytest.mark.parametrize("study, fragment", [
    (dict(methods=["zero-shot", "zero-shot"]), "asked for twice"),
    (dict(methods=["magic"]), "the methods are zero-shot, linear-probe, coop, clip-adapter"),
    (dict(methods=[]), "Nothing to run"),
    (dict(shots=[0]), "shots must be at least 1"),
])
def test_an_impossible_study_is_refused(banks, study, fragment):
    with pytest.raises(ValueError, match=fragment):
        plan(**(dict(banks=banks) | SMALL | study))


def test_two_settings_of_one_method_are_two_methods(banks):
    methods = [cal.CLIPAdapter(alpha=a, steps=1) for a in (0.2, 0.4)]
    table = cal.compare(banks[:1], methods, [1], [1])
    assert list(table.method) == ["clip-adapter(alpha=0.2, steps=1)", "clip-adapter(alpha=0.4, steps=1)"]


def cut(path: Path, rows: int, half: bool):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:rows + 1]) + (lines[rows + 1][:9] if half else ""))


@pytest.mark.parametrize("half", [False, True])
def test_resume_does_only_what_is_missing_and_ends_with_the_same_file(banks, tmp_path, monkeypatch, half):
    out = tmp_path / "r.csv"
    whole = cal.compare(banks, **SMALL, out=out)
    cut(out, 5, half)
    fits, fit = [], cal.Method.fit
    monkeypatch.setattr(cal.Method, "fit", lambda self, episode: fits.append(1) or fit(self, episode))
    again = cal.compare(banks, **SMALL, out=out, resume=True)
    assert len(fits) == len(whole) - 5
    pandas.testing.assert_frame_equal(without_time(again), without_time(whole))
    pandas.testing.assert_frame_equal(pandas.read_csv(out), again)


def test_pending_counts_what_a_resumed_study_would_do(banks, tmp_path):
    out = tmp_path / "r.csv"
    cal.compare(banks, **SMALL, out=out)
    cut(out, 5, True)
    assert pending(banks, **SMALL).title == "16 of 16 runs to do"
    assert pending(banks, **SMALL, out=out).title == "11 of 16 runs to do"


def test_resume_refuses_rows_of_another_bank_of_the_same_name(toy_bank, tmp_path):
    cal.compare([toy_bank()], ["zero-shot"], [1], [1], out=tmp_path / "r.csv")
    before = (tmp_path / "r.csv").read_bytes()
    with pytest.raises(ValueError, match="another 'toy"):
        cal.compare([toy_bank(seed=9)], ["zero-shot"], [1], [1], out=tmp_path / "r.csv", resume=True)
    assert (tmp_path / "r.csv").read_bytes() == before


def test_without_resume_the_old_rows_are_kept_under_another_name(banks, tmp_path):
    cal.compare(banks, **SMALL, out=tmp_path / "r.csv")
    before = (tmp_path / "r.csv").read_bytes()
    cal.compare(banks, ["zero-shot"], [1], [1], out=tmp_path / "r.csv")
    assert (tmp_path / "r.previous.csv").read_bytes() == before
    assert len(read_rows(tmp_path / "r.csv")) == 2


def test_a_run_that_its_bank_does_not_allow_ends_no_other(toy_bank, tmp_path, expect_refused):
    study = dict(banks=[toy_bank(dataset="no val", val=0), toy_bank()], shots=[1], seeds=[1], out=tmp_path / "r.csv")
    methods = ["clip-adapter(alpha=val, steps=1)", "zero-shot"]
    with expect_refused(f"1 of 4 runs could not be done ({methods[0]}: no val: the residual ratio is chosen on validation"):
        cal.compare(methods=methods, **study)
    done = {(row["dataset"], row["method"]) for row in read_rows(tmp_path / "r.csv").values()}
    assert done == {("no val", "zero-shot"), ("toy", methods[0]), ("toy", "zero-shot")}
    with expect_refused("no val: the residual ratio is chosen on validation images"):
        cal.compare(methods=methods, **study | {"out": None})


def test_a_run_that_fails_loses_no_finished_row(banks, tmp_path, monkeypatch):
    fit, count = cal.Method.fit, []

    def failing(self, episode):
        count.append(1)
        if len(count) == 4:
            raise RuntimeError("power cut")
        return fit(self, episode)

    monkeypatch.setattr(cal.Method, "fit", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        cal.compare(banks, **SMALL, out=tmp_path / "r.csv")
    assert len(read_rows(tmp_path / "r.csv")) == 3


@pytest.mark.slow
def test_a_process_killed_in_the_middle_is_resumed(tmp_path):
    """A real SIGKILL: the command line is killed once rows have appeared, and goes on from them."""
    out = tmp_path / "r.csv"
    command = [sys.executable, "-m", "clip_adapter_lite.cli", "compare", "--banks", "pacs-photo", "--methods",
               "zero-shot,clip-adapter", "--shots", "1,2,4,8,16", "--seeds", "1,2,3", "--jobs", "1", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and 16 <= len(read_rows(out)) < 30):
        assert running.poll() is None or len(read_rows(out)) < 30, "it finished before it could be killed"
        os.sched_yield()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    before = read_rows(out)
    assert 16 <= len(before) < 30
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    after = read_rows(out)
    assert len(after) == 30
    assert all(after[key]["seconds"] == row["seconds"] for key, row in before.items())  # not run again


def test_summary_is_mean_and_sample_deviation():
    rows = [dict(dict.fromkeys(COLUMNS, 0), dataset="d", backbone="b", method="m", shots=1, seed=s, accuracy=a)
            for s, a in ((1, 0.5), (2, 0.7), (3, 0.9))]
    summary = cal.summarise(pandas.DataFrame(rows)).iloc[0]
    assert summary["count"] == 3
    assert math.isclose(summary["mean"], 0.7) and math.isclose(summary["std"], 0.2)


def test_labelled_counts_the_images_a_class_that_a_fit_looked_at(banks):
    """Shots, and min(shots, 4) validation images where the method selects on them."""
    methods = ["zero-shot", cal.CLIPAdapter(alpha=0.3, steps=1), cal.CLIPAdapter(steps=1),
               cal.TipAdapter(alpha=1.0, beta=1.0), cal.TipAdapter(alpha=1.0),
               cal.CLIPAdapter(alpha=0.3, beta="val", steps=1)]
    table = cal.compare(banks[0], methods, [1, 2], 1)
    assert table.labelled.tolist() == [0, 0, 1, 2, 2, 4, 1, 2, 2, 4, 1, 2]
    assert cal.summarise(table).labelled.tolist() == table.labelled.tolist()
    assert cal.compare(banks[0], methods[2:3], [2], 1, validation=False).labelled.tolist() == [2]


def test_shots_only_takes_the_validation_images_away(banks):
    method = cal.CLIPAdapter(steps=4)
    (found,) = cal.compare(banks[0], method, 2, 1, validation=False).itertuples()
    episode = banks[0].episode(2)
    fitted = method.fit(replace(episode, val=episode.val.take(torch.tensor([], dtype=torch.long))))
    assert (found.alpha, found.accuracy) == (fitted.alpha, fitted.accuracy(episode.test)) and math.isnan(found.val_accuracy)
    assert fitted.alpha != method.fit(episode).alpha


def test_a_method_that_needs_validation_images_is_refused_without_them(banks, expect_refused):
    with expect_refused("linear-probe chooses C on validation images, which shots only have not; give a number, as in "
                        "linear-probe(C=1)", ValueError):
        cal.compare(banks, ["zero-shot", "linear-probe"], [1], [1], validation=False)


def test_the_two_protocols_are_not_mixed_in_one_file(banks, tmp_path, expect_refused):
    study = dict(methods=[cal.CLIPAdapter(steps=1)], shots=[1], seeds=[1], out=tmp_path / "r.csv")
    cal.compare(banks, **study)
    with expect_refused("was computed by another protocol", ValueError):
        cal.compare(banks, **study, resume=True, validation=False)


def test_jobs_must_be_a_number_of_processes_and_an_old_result_is_left_alone(banks, tmp_path):
    cal.compare(banks, ["zero-shot"], [1], [1], out=tmp_path / "r.csv")
    before = (tmp_path / "r.csv").read_bytes()
    with pytest.raises(ValueError, match="jobs must be"):
        cal.compare(banks, **SMALL, out=tmp_path / "r.csv", jobs=0)
    assert (tmp_path / "r.csv").read_bytes() == before


def test_a_file_that_holds_no_results_is_not_resumed(banks, tmp_path):
    (tmp_path / "r.csv").write_text("my,own\n1,2\n")
    with pytest.raises(ValueError, match="not a file of results"):
        cal.compare(banks, **SMALL, out=tmp_path / "r.csv", resume=True)
    assert (tmp_path / "r.csv").read_text() == "my,own\n1,2\n"
