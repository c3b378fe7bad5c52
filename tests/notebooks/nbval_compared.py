"""A pytest plugin: writes to $NBVAL_COMPARED which code cells nbval really compared, and whether they were the same."""
import json
import os
from pathlib import Path

from nbval.plugin import IPyNbCell

FOUND: dict[int, bool] = {}
nbval_compare = IPyNbCell.compare_outputs


def compare_and_note(cell, test, reference, *arguments) -> bool:
    FOUND[cell.cell_num] = nbval_compare(cell, test, reference, *arguments)
    return FOUND[cell.cell_num]


IPyNbCell.compare_outputs = compare_and_note


def pytest_sessionfinish():
    Path(os.environ["NBVAL_COMPARED"]).write_text(json.dumps(FOUND), encoding="utf-8")
