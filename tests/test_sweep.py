"""Sweeps: every point of the grid, the same rows on every engine, resumed after a kill."""
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy
import pandas
import pytest
from typer.testing import CliRunner

import clip_adapter_lite as cal
from clip_adapter_lite import devices, plots
from clip_adapter_lite.cli import app, studies
from clip_adapter_lite.experiments import engines
from clip_adapter_lite.experiments.runs import COLUMNS, read_rows
from clip_adapter_lite.experiments.sweep import chosen_on_validation, plan_sweep, sweep_columns

GRID = {"alpha": [0.0, 0.5], "reduction": [2, 8], "branch": ["visual", "text"]}
SMALL = dict(base=cal.CLIPAdapter(steps=3), grid=GRID, shots=[1, 2], seeds=[1, 2])


@pytest.fixture
def banks(toy_bank):
    return [toy_bank(classes=3, dataset="one"), toy_bank(classes=4, dataset="two", seed=5)]


def without_time(table):
    return table.drop(columns="seconds")


def test_one_row_for_each_bank_point_shots_and_seed_in_that_order(banks):
    table = cal.sweep(banks, **SMALL, jobs=1)
    assert tuple(table.columns) == (*COLUMNS, "reduction", "branch")
    assert list(zip(table.dataset, table.alpha, table.reduction, table.branch, table.shots, table.seed)) == [
        (d, a, r, b, s, seed) for d in ("one", "two") for a in (0.0, 0.5) for r in (2, 8) for b in ("visual", "text")
        for s in (1, 2) for seed in (1, 2)]


def test_rows_hold_what_a_fit_by_hand_gives_and_a_text_adapters_ratio_is_beta(banks):
    table = cal.sweep(banks, **SMALL, jobs=1).set_index(["dataset", "alpha", "reduction", "branch", "shots", "seed"])
    for branch, settings in (("visual", {"alpha": 0.5}), ("text", {"beta": 0.5})):
        episode = banks[1].episode(2, 1)
        fitted = cal.CLIPAdapter(branch=branch, reduction=8, steps=3, **settings).fit(episode)
        row = table.loc[("two", 0.5, 8, branch, 2, 1)]
        assert row.accuracy == fitted.accuracy(episode.test) and row.val_accuracy == fitted.val_accuracy
        assert row.parameters == 2 * 16 * 2
    zero = cal.ZeroShot().fit(banks[0].episode(1)).accuracy(banks[0].episode(1).test)
    assert (table.loc[("one", 0.0)].accuracy == zero).all()


def test_the_text_ratio_is_its_own_where_the_grid_says_so(banks):
    base = cal.CLIPAdapter(steps=1, branch="both")
    runs = plan_sweep(banks[:1], base, {"alpha": [0.1], "beta": [0.7, 0.9]}, [1], [1])
    assert [(r.method.alpha, r.method.beta) for r in runs] == [(0.1, 0.7), (0.1, 0.9)]
    runs = plan_sweep(banks[:1], base, {"alpha": [0.1, "learned"]}, [1], [1])
    assert [(r.method.alpha, r.method.beta) for r in runs] == [(0.1, 0.1), ("learned", "learned")]
    assert [r.shown for r in runs] == [{"alpha": 0.1}, {}]  # the fitted mean stays in the row of a learned ratio


def test_any_method_can_be_swept(banks):
    table = cal.sweep(banks[:1], cal.LinearProbe(), {"C": [0.1, 10.0]}, [2], [1], jobs=1)
    episode = banks[0].episode(2, 1)
    assert list(table.accuracy) == [cal.LinearProbe(C=c).fit(episode).accuracy(episode.test) for c in (0.1, 10.0)]


@dataclass(frozen=True)
class Told:
    """A run that tells what it was given instead of fitting."""
    bank: str = "bank"
    method: cal.Method = cal.ZeroShot()

    def __call__(self):
        import ray
        return ray.get_runtime_context().get_accelerator_ids()["GPU"], ray.get_runtime_context().get_assigned_resources()


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, 1])
def test_runs_on_ray_share_the_gpus_that_a_cluster_has(gpus):
    ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
    ray.init(num_cpus=2, num_gpus=gpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)  # workers do not find the tests
    try:
        told = list(engines.finished([Told(), Told()], engine="ray"))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(here)
        ray.shutdown()
    for ids, resources in told:
        assert ids == ["0"] * gpus and resources.get("GPU", 0) == gpus * engines.GPU_SHARE


@pytest.mark.parametrize("device, jobs, wanted", [("cuda", -1, "here"), ("cuda:1", 1, "here"), ("cuda:1", 4, 4),
                                                   ("cpu", -1, -1)])
def test_one_process_is_enough_for_a_gpu(device, jobs, wanted, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "must_work", lambda device: None)
    monkeypatch.setattr(engines, "_on_joblib", lambda runs, jobs: asked.append(jobs))
    monkeypatch.setattr(engines, "_here", lambda runs: asked.append("here"))
    engines.finished([Told(method=cal.ZeroShot(device=device))], jobs=jobs)
    assert asked == [wanted]


def test_runs_in_one_process_give_the_rows_of_single_ones_and_adapters_train_as_one(toy_bank, monkeypatch, tmp_path):
    """Stacked on a CPU, which by itself trains one by one."""
    from clip_adapter_lite.methods import clip_adapter
    stacks, train, stacked = [], clip_adapter._train_heads, clip_adapter.train_stacked
    banks = [toy_bank(dataset="a"), toy_bank(dataset="b", seed=1)]
    grid = dict(grid={"alpha": [0, 0.4, 0.8], "reduction": [2, 4]}, shots=[2], seeds=[1, 2])
    single = cal.sweep(banks, cal.CLIPAdapter(steps=5), **grid, jobs=1)
    monkeypatch.setattr(engines, "_on_joblib", lambda runs, jobs: engines._here(runs))
    monkeypatch.setattr(clip_adapter, "_train_heads", lambda work: train(work, len(work) > 1))
    monkeypatch.setattr(clip_adapter, "train_stacked",
                        lambda tasks, *args, **options: stacks.append(len(tasks)) or stacked(tasks, *args, **options))
    together = cal.sweep(banks, cal.CLIPAdapter(steps=5), **grid, jobs=1, out=tmp_path / "r.csv")
    assert stacks == [4] * 4  # two ratios above 0 and two seeds, of each bank and width
    pandas.testing.assert_frame_equal(without_time(together), without_time(single))
    mixed = cal.compare(banks, ["zero-shot", "clip-adapter", "clap"], [1], [1, 2])
    assert len(mixed) == 12 and (mixed.seconds > 0).all()


def test_a_run_that_cannot_be_done_leaves_the_others_of_its_stack(toy_bank, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "_on_joblib", lambda runs, jobs: engines._here(runs))
    fit = cal.CLIPAdapter.prepared
    monkeypatch.setattr(cal.CLIPAdapter, "prepared", lambda self, episode: fit(self, episode) if episode.seed != 2
                        else (_ for _ in ()).throw(cal.BankError("Seed 2 cannot be drawn.")))
    with pytest.raises(cal.BankError, match="1 of 3 runs could not be done"):
        cal.sweep(toy_bank(), cal.CLIPAdapter(steps=1), {"alpha": [0.5]}, [1], [1, 2, 3], out=tmp_path / "r.csv")
    assert pandas.read_csv(tmp_path / "r.csv").seed.tolist() == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["joblib", "ray"])
def test_two_workers_give_the_same_rows_in_the_same_order(banks, engine, tmp_path):
    """Ray starts a local cluster of two workers."""
    if engine == "ray":
        pytest.importorskip("ray", reason="the extra [ray] is not installed")
    out = tmp_path / "r.csv"
    table = cal.sweep(banks, **SMALL, jobs=2, engine=engine, out=out)
    pandas.testing.assert_frame_equal(without_time(table), without_time(cal.sweep(banks, **SMALL, jobs=1)))
    pandas.testing.assert_frame_equal(pandas.read_csv(out), table)


def test_resume_does_only_what_is_missing_and_ends_with_the_same_table(banks, tmp_path, monkeypatch):
    out = tmp_path / "r.csv"
    whole = cal.sweep(banks, **SMALL, jobs=1, out=out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:12]) + lines[12][:7])
    fits, fit = [], cal.Method.fit
    monkeypatch.setattr(cal.Method, "fit", lambda self, episode: fits.append(1) or fit(self, episode))
    again = cal.sweep(banks, **SMALL, jobs=1, out=out, resume=True)
    assert len(fits) == len(whole) - 11
    pandas.testing.assert_frame_equal(without_time(again), without_time(whole))
    pandas.testing.assert_frame_equal(pandas.read_csv(out), again)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_is_resumed(tmp_path):
    out = tmp_path / "r.csv"
    columns = sweep_columns(["alpha", "reduction"])
    command = [sys.executable, "-m", "clip_adapter_lite.cli", "sweep", "--banks", "pacs-photo", "--shots", "1,2,4", "--jobs",
               "1", "--grid", "alpha=0.2,0.4,0.6,0.8", "--grid", "reduction=1,4", "--seeds", "1,2", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out.exists() and len(read_rows(out, columns)) >= 5):
        assert running.poll() is None, "it finished before it could be killed"
        os.sched_yield()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    before = read_rows(out, columns)
    assert 5 <= len(before) < 48
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    after = read_rows(out, columns)
    assert len(after) == 48 and out.with_suffix(".png").exists()
    assert all(after[key]["seconds"] == row["seconds"] for key, row in before.items())  # not run again


@pytest.mark.parametrize("wrong, fragment", [
    (dict(grid={"width": [1]}), "'width', which is no setting of clip-adapter"),
    (dict(grid={"alpha": []}), "Nothing to run"),
    (dict(grid={"alpha": [0.2, 0.2]}), "asked for twice"),
    (dict(grid={"alpha": [1.5]}), "from 0 to 1"),
    (dict(grid={"reduction": ["a"]}), "reduction of clip-adapter must be a whole number; got 'a'"),
    (dict(jobs=0), "jobs must be"),
    (dict(engine="slurm"), "engine must be one of joblib, ray"),
    (dict(address="10.0.0.1:6379"), "engine='ray'"),
])
def test_an_impossible_sweep_is_refused_before_any_run(banks, wrong, fragment, monkeypatch):
    monkeypatch.setattr(cal.Method, "fit", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(ValueError, match=fragment):
        cal.sweep(banks, **(SMALL | dict(jobs=1) | wrong))


def test_without_ray_the_engine_says_how_to_get_it(banks, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'clip-adapter-lite\[ray\]'"):
        engines.check_engine("ray", 2, None)


def test_what_validation_chooses_and_what_choosing_on_test_would_flatter():
    rows = [dict(dataset="d", backbone="b", shots=1, alpha=a, seed=seed, val_accuracy=v, accuracy=t)
            for a, seed, v, t in ((0.0, 1, 0.5, 0.5), (0.0, 2, 0.7, 0.5), (0.5, 1, 0.7, 0.4), (0.5, 2, 0.9, 0.6),
                                  (1.0, 1, 0.6, 0.9), (1.0, 2, 0.6, 0.8))]
    chosen = chosen_on_validation(pandas.DataFrame(rows), ["alpha"])
    assert len(chosen) == 1
    assert chosen.iloc[0].alpha == 0.5 and chosen.iloc[0].val_accuracy == pytest.approx(0.8)
    assert chosen.iloc[0].accuracy == pytest.approx(0.5) and chosen.iloc[0].best_accuracy == pytest.approx(0.85)


def test_a_choice_took_the_shots_and_the_validation_images_of_each_class(toy_bank, expect_refused):
    """Of classes with 3, 1, 0 and 5 validation images a choice at 4 shots sees all but one, at 1 shot one each."""
    bank = toy_bank(classes=4, train=8, val=[3, 1, 0, 5])
    table = cal.sweep(bank, cal.CLIPAdapter(steps=1), {"alpha": [0.0, 0.5]}, [1, 4], [1, 2], jobs=1)
    assert table[table.shots == 4].labelled.unique().tolist() == [4.0]  # a fixed ratio looks at the shots alone
    chosen = chosen_on_validation(table, ["alpha"], bank).set_index("shots").labelled
    assert chosen.to_dict() == {1: 1 + (1 + 1 + 0 + 1) / 4, 4: 4 + (3 + 1 + 0 + 4) / 4}
    assert "labelled" not in chosen_on_validation(table, ["alpha"])
    for others in ([toy_bank(dataset="another")], ["toy"]):
        with expect_refused("The table has runs on 'toy' with the backbone 'none', which is not among banks", ValueError):
            chosen_on_validation(table, ["alpha"], others)


def test_the_printed_choice_has_every_number_in_80_columns():
    from rich.console import Console
    chosen = pandas.DataFrame([dict(dataset="pacs-cartoon", shots=16, labelled=20.0, alpha=0.5, reduction=32,
                                    branch="visual", val_accuracy=0.8214, accuracy=0.81, best_accuracy=0.814)])
    console = Console(width=80, file=io.StringIO())
    console.print(studies.chosen_table(chosen, ["alpha", "reduction", "branch"], "pocket CLIP"))
    lines = console.file.getvalue().splitlines()
    assert ["pacs-cartoon", *"16 20 0.5 32 visual 82.1 81.0 81.4".split()] in [line.split() for line in lines]
    assert "bank shots labelled alpha reduction branch val test test".split() in [line.split() for line in lines]
    assert "labelled: images a class" in " ".join(lines)


def test_a_sweep_takes_one_of_a_kind_and_numbers_of_numpy(banks):
    wanted = cal.sweep([banks[0]], cal.CLIPAdapter(steps=1), {"alpha": [0.0, 0.5], "reduction": [2]}, [1], [1], jobs=1)
    found = cal.sweep(banks[0], cal.CLIPAdapter(steps=1), {"alpha": numpy.array([0.0, 0.5]), "reduction": numpy.int64(2)},
                      numpy.int64(1), 1, jobs=1)
    pandas.testing.assert_frame_equal(without_time(found), without_time(wanted))


@pytest.mark.parametrize("change", [dict(base=None), dict(base=cal.CLIPAdapter), dict(grid=[0.2]), dict(grid="alpha")])
def test_a_sweep_of_something_else_is_refused(banks, expect_refused, change):
    with expect_refused("A sweep takes a method and a grid, such as ", ValueError):
        cal.sweep(banks, **SMALL | change, jobs=1)


def test_a_sweep_takes_a_label(banks):
    wanted = cal.sweep(banks[0], cal.CLIPAdapter(steps=1), {"alpha": [0.5]}, 1, 1, jobs=1)
    found = cal.sweep(banks[0], "clip-adapter(steps=1)", {"alpha": [0.5]}, 1, 1, jobs=1)
    pandas.testing.assert_frame_equal(without_time(found), without_time(wanted))


def test_nothing_is_chosen_of_nothing(expect_refused):
    table = pandas.DataFrame(columns=["dataset", "backbone", "shots", "alpha", "val_accuracy", "accuracy"])
    with expect_refused("The table has no runs", ValueError):
        chosen_on_validation(table, ["alpha"])
    with expect_refused("no column 'rate'", ValueError):
        chosen_on_validation(table, "rate")


def test_the_heat_map_shows_the_means_and_outlines_what_validation_chooses(banks):
    table = cal.sweep(banks, **SMALL, jobs=1)
    figure = plots.heat_map(table)
    assert len(figure.axes) == 2 * 2 * 2  # bank × branch × shots
    for axis in figure.axes:
        bank, shots, branch = axis.get_title().split(", ")
        here = table[(table.dataset == bank) & (table.branch == branch.split()[0]) & (table.shots == int(shots.split()[0]))]
        cells = {(t.get_position()[0], t.get_position()[1]): t.get_text() for t in axis.texts}
        for i, alpha in enumerate(GRID["alpha"]):
            for j, reduction in enumerate(GRID["reduction"]):
                mean = here[(here.alpha == alpha) & (here.reduction == reduction)].accuracy.mean()
                assert cells[(i + 0.5, j + 0.5)] == f"{100 * mean:.0f}"
        best = here.groupby(["reduction", "alpha"], sort=False).val_accuracy.mean()
        row, column = best.idxmax()
        (outline,) = axis.patches
        assert outline.get_xy() == (GRID["alpha"].index(column), GRID["reduction"].index(row))
    with pytest.raises(ValueError, match="no column 'width'"):
        plots.heat_map(table, y="width")


def test_the_command_writes_the_table_the_map_and_what_was_chosen(tmp_path, monkeypatch):
    from rich.console import Console
    monkeypatch.setattr(studies, "console", Console(width=200))
    out = tmp_path / "s.csv"
    result = CliRunner().invoke(app, ["sweep", "--banks", "rsscn7", "--grid", "alpha=0,0.6", "--grid", "reduction=4,32",
                                      "--shots", "1", "--seeds", "1,2", "--jobs", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "8 runs: 1 bank(s) × 2 alpha × 2 reduction × 1 shots × 2 seeds" in result.output
    table = pandas.read_csv(out)
    chosen = chosen_on_validation(table, ["alpha", "reduction"]).iloc[0]
    assert f"{100 * chosen.accuracy:.1f}" in result.output and "chosen on test" in result.output
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("text, wanted", [
    ("alpha=0,0.5,val", ("alpha", [0, 0.5, "val"])), ("final-relu=true,false", ("final_relu", [True, False])),
    ("words = none", ("words", [None]))])
def test_a_grid_option_is_a_setting_and_its_values(text, wanted):
    assert studies.grid_axis(text) == wanted


def test_a_grid_option_without_values_is_refused():
    result = CliRunner().invoke(app, ["sweep", "--grid", "alpha"])
    assert result.exit_code == 2 and "alpha=0,0.2,0.5; got 'alpha'" in result.output
