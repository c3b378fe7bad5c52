"""The numbers that the authors or others published: data (`paper.json`), with where each is from."""
import json
from functools import cache
from pathlib import Path
from statistics import fmean

from ..datasets import TABLE


@cache
def paper() -> dict:
    """The published numbers and their setting, in %: see `paper.json`."""
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))


@cache
def settings() -> dict[str, tuple[str, int, int]]:
    """The paper's datasets and shifts: title, classes and test images, from the table of datasets."""
    entries = {name: (TABLE[name], TABLE[name]["title"]) for name in paper()["datasets"]}
    entries |= {f"imagenet-to-{name}": (TABLE[name], f"ImageNet → {TABLE[name]['title']}")
                for name in paper()["shifts"]}
    return {name: (title, facts["classes"], facts["splits"]["test"])
            for name, (facts, title) in entries.items()}


def paper_numbers(backbone: str) -> dict[tuple[str, str, int], tuple[float, str, str]]:
    """(dataset, method, shots) → (accuracy in %, backbone, source): this backbone's number, or else
    RN50's.

    Zero-shot has 0 shots. Of two published numbers the author's counts.
    """
    found = {}
    for series in sorted(paper()["numbers"], key=lambda series: series["backbone"] != backbone):
        if series["backbone"] in (backbone, paper()["backbone"]):
            for shots, accuracy in series["accuracy"].items():
                key = (series["dataset"], series["method"], int(shots))
                found.setdefault(key, (accuracy, series["backbone"],
                                       paper()["sources"][series["source"]]))
    return found


def paper_averages() -> dict[tuple[str, int], tuple[float, str]]:
    """(method, shots) → (mean over the eleven datasets in %, source), of RN50: derived, as the
    sources say.
    """
    numbers, sources, found = paper_numbers(paper()["backbone"]), paper()["sources"], {}
    for series in paper()["averages"]:  # of single numbers that are not in the file
        for shots, accuracy in series["accuracy"].items():
            found[series["method"], int(shots)] = accuracy, sources[series["source"]]
    for method, shots in {key[1:] for key in numbers}:
        eleven = [numbers.get((dataset, method, shots), (None,))[0] for dataset in paper()["datasets"]]
        if None not in eleven:
            found[method, shots] = round(fmean(eleven), 2), sources["mean"]
    return found
