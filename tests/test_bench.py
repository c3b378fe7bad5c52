"""The bench's runner: what is met, what is written, what happens when a figure fails. No timing is asserted."""
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import bench  # noqa: E402
import figures_training  # noqa: E402
import measuring  # noqa: E402
from measuring import Measured  # noqa: E402

from clip_adapter_lite import CLIPAdapter  # noqa: E402

ISSUE = {"adapter-over-matmul": "≤ 1.5", "peers-speedup": "≥ 20", "coop-speedup": "≥ 12", "coop-memory": "≥ 8",
         "alpha-search": "≤ 11", "learned-ratio": "≤ 1.6", "widget-p95-ms": "≤ 300", "ablation-600-seconds": "≤ 30",
         "core-scaling": "≥ 1.6", "growth": None, "peak-memory-mb": "≤ 2000", "build-rate": "≥ 0.85",
         "import-ratio": "≤ 1.3"}


def figure(name: str, value: float, target: str | None = None, holds: bool = True) -> bench.Figure:
    return bench.Figure(name, "ratio", target, lambda quick: Measured(value, f"It is {value}.", holds))


def broken(name: str) -> bench.Figure:
    def measure(quick):
        raise OSError("no [memory] left")
    return bench.Figure(name, "MB", "≤ 10", measure)


def run(figures, path, **options):
    console = Console(record=True, width=120, file=open("/dev/null", "w"))
    return bench.run(figures, path, console, **options), console.export_text()


def test_the_figures_and_their_targets_are_those_that_were_asked_for():
    assert {f.name: f.target for f in bench.FIGURES} == ISSUE
    assert {f.name: f.target for f in bench.ON_GPU} == {
        "gpu-fit-over-matmul": "≤ 3", "gpu-alpha-search": "≤ 3", "gpu-ablation-seconds": "≤ 3", "gpu-peers-speedup": "≥ 200",
        "gpu-coop-100": "≥ 5", "gpu-coop-1000": "≥ 4.5", "gpu-coop-memory": "≥ 4", "gpu-build-rate": "≥ 2"}


def test_without_a_gpu_its_figures_are_not_measured_and_that_is_said(tmp_path, monkeypatch):
    import typer
    app = typer.Typer()
    app.command()(bench.main)
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    said = CliRunner().invoke(app, ["--only", "gpu", "--out", str(tmp_path / "bench.json")])
    assert said.exit_code == 0 and "no GPU here: gpu-fit-over-matmul, " in said.output
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.parametrize("value, target, holds, met", [
    (1.5, "≤ 1.5", True, True), (1.51, "≤ 1.5", True, False), (20, "≥ 20", True, True), (19.9, "≥ 20", True, False),
    (99, "≥ 20", False, False), (1.0, "≤ 1.5", False, False), (7, None, True, None)])
def test_met_compares_with_the_target_and_needs_what_the_figure_presumes(value, target, holds, met):
    row = figure("x", value, target, holds).row()
    assert row["met"] is met and row["value"] == value
    assert row["target"] == (None if target is None else float(target.split()[1]))


def test_a_file_of_all_rows_is_written_and_the_table_shows_them(tmp_path):
    path = tmp_path / "results" / "bench.json"
    rows, printed = run([figure("a", 2.0, "≥ 1"), figure("b", 3.0)], path)
    assert json.loads(path.read_text()) == rows == [
        {"name": "a", "value": 2.0, "unit": "ratio", "target": 1.0, "met": True, "detail": "It is 2.0."},
        {"name": "b", "value": 3.0, "unit": "ratio", "target": None, "met": None, "detail": "It is 3.0."}]
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]
    assert "a: 2, met" in printed and "It is 3.0." in printed and "reported" in printed and "≥ 1" in printed


def test_a_figure_that_raises_is_reported_and_the_others_still_run(tmp_path):
    rows, printed = run([broken("first"), figure("second", 1.0, "≤ 2")], tmp_path / "bench.json")
    assert rows[0] == {"name": "first", "value": None, "unit": "MB", "target": 10.0, "met": False,
                       "detail": "failed: OSError: no [memory] left"}
    assert rows[1]["met"] is True
    assert "no [memory] left" in printed and "first: failed, not met" in printed


def test_what_was_measured_is_on_disk_before_the_next_figure_starts(tmp_path):
    path, seen = tmp_path / "bench.json", []

    def look(quick):
        seen.extend(row["name"] for row in json.loads(path.read_text()))
        return Measured(1.0, "Seen.")
    run([figure("early", 1.0), bench.Figure("late", "ratio", None, look)], path)
    assert seen == ["early"]


def test_earlier_rows_stay_for_figures_that_are_not_measured_now(tmp_path):
    path = tmp_path / "bench.json"
    before, _ = run([figure("import-ratio", 1.2, "≤ 1.3"), figure("growth", 5.0)], path)
    rows, _ = run([figure("growth", 6.0)], path, before=before)
    assert [(row["name"], row["value"]) for row in rows] == [("growth", 6.0), ("import-ratio", 1.2)]
    assert json.loads(path.read_text()) == rows


def test_the_command_measures_only_what_is_named_and_fails_if_a_figure_does(tmp_path, monkeypatch):
    import typer
    app = typer.Typer()
    app.command()(bench.main)
    named = {(): [figure("growth", 5.0)], ("growth", "build-rate"): [broken("build-rate")]}
    monkeypatch.setattr(bench, "chosen", lambda names: named[tuple(names)])
    path = tmp_path / "bench.json"

    def run_command(*options):
        code = CliRunner().invoke(app, [*options, "--out", str(path)]).exit_code
        return code, [(row["name"], row["value"]) for row in json.loads(path.read_text())]
    assert run_command() == (0, [("growth", 5.0)])
    assert run_command("--only", "growth, build-rate") == (1, [("growth", 5.0), ("build-rate", None)])
    assert run_command() == (0, [("growth", 5.0)])  # all of them were asked for, so nothing stays from before


def test_an_unknown_figure_is_refused_with_the_names_there_are(expect_refused):
    with expect_refused("There is no figure 'speed'; give one of adapter-over-matmul, ", ValueError):
        bench.chosen(["growth", "speed"])
    assert [f.name for f in bench.chosen(["growth", "coop-speedup"])] == ["coop-speedup", "growth"]
    assert bench.chosen([]) == [*bench.FIGURES, *bench.ON_GPU] and bench.chosen(["gpu"]) == list(bench.ON_GPU)


def test_a_figure_without_work_in_this_process_is_not_profiled():
    with pytest.raises(ValueError, match="measured in other processes"):
        bench.profile(figure("x", 1.0), Console())


# ── how it is measured ────────────────────────────────────────────────────────────────────────────────────────────

def test_sides_are_run_by_turns_after_one_round_that_does_not_count(monkeypatch):
    calls = []
    monkeypatch.setattr(measuring, "seconds", lambda work: work() or float(len(calls)))
    taken = measuring.by_turns(lambda: calls.append("a"), lambda: calls.append("b"))
    assert "".join(calls) == "ab" * 6
    assert taken == [[3, 5, 7, 9, 11], [4, 6, 8, 10, 12]]


def test_a_ratio_is_the_median_of_the_rounds():
    assert measuring.ratio([2.0, 30.0, 9.0, 1.0, 8.0], [1.0, 1.0, 3.0, 4.0, 2.0]) == 3  # of 2, 30, 3, 1/4 and 4


def test_the_bare_products_are_those_that_autograd_makes_in_a_step():
    """Counted by PyTorch itself: two multiplications and additions for each entry, of every product of a real step."""
    from torch.utils.flop_counter import FlopCounterMode
    episode, method = figures_training.synthetic_episode(7, 3, 16), CLIPAdapter(alpha=0.2, steps=4)
    with FlopCounterMode(display=False) as bare:
        figures_training.bare_products(episode, method)()
    with FlopCounterMode(display=False) as fitted:
        method.fit(episode)
    hidden, images = 4, 21
    assert bare.get_total_flops() == 4 * 2 * images * (5 * 16 * hidden + 2 * 16 * 7)
    validation = 2 * 7 * (2 * 16 * hidden + 16 * 7)  # one forward pass of seven images, after the training
    assert fitted.get_total_flops() == bare.get_total_flops() + validation


def test_fresh_processes_return_values_and_say_what_went_wrong():
    assert measuring.python("import sys; print('noise'); print(f'[{sys.argv[1]}, 2]')", 7) == [7, 2]
    with pytest.raises(RuntimeError, match="ended with 1: ValueError: too few"):
        measuring.python("raise ValueError('too few')")


@pytest.mark.slow
def test_peak_memory_sees_what_was_freed_again_and_not_what_was_before():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the high-water mark is read from Linux's /proc")
    before, peak = measuring.python("""if True:
        import json, measuring, torch
        torch.zeros(50_000_000).fill_(1)  # 200 MB, before
        print(json.dumps(measuring.peak_memory(lambda: torch.zeros(20_000_000).fill_(1))))""")
    assert 75 < peak - before < 120
