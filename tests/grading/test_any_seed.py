"""The hidden tests on the inputs of many seeds: known mistakes fail them and right answers pass, whatever is drawn."""
import contextlib
import io
import random

import pytest
import torch
from submitting import ROOT, SPECS, expected, named, patched

from clip_adapter_lite import checks

import assignments  # isort: skip (from solutions/, which submitting puts on the path)
from sealing import imports  # isort: skip

SEEDS = 10


def passes(code, namespace: dict, seed: int, monkeypatch) -> bool:
    monkeypatch.setattr(checks, "SECRET", 7919 * seed + 1)
    random.seed(seed), torch.manual_seed(seed)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(code, namespace)
    except Exception:
        return False
    return True


@pytest.mark.grader
@pytest.mark.parametrize("folder", sorted({spec.parent for spec in SPECS}), ids=lambda folder: folder.name)
def test_a_hidden_test_tells_right_from_wrong_whatever_is_drawn(folder, monkeypatch):
    made = assignments.built({folder.name: ROOT / "solutions" / "src" / f"{folder.name}.py"})
    source, hand_out = made["solutions"][folder.name], made["exercises"][folder.name]
    wrong = []
    for spec in (spec for spec in SPECS if spec.parent == folder):
        submission = named(spec)
        if submission.notes or submission.start == "blank":  # hostile, or empty
            continue
        namespace, scores = imports(source), expected(submission, source)
        for cell in patched(submission, source, hand_out).cells:
            if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("solution"):
                with contextlib.suppress(Exception):  # a cell that does not run defines nothing
                    exec(compile(cell.source, spec.stem, "exec"), namespace)
        for cell in source.cells:
            name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            if name.endswith("-hidden") and name != "reading-hidden":  # which draws nothing, and reads a figure's table
                code = compile(cell.source, name, "exec")
                wrong += [(spec.stem, name, seed) for seed in range(SEEDS)
                          if passes(code, namespace, seed, monkeypatch) != (scores[name] > 0)]
    assert not wrong
