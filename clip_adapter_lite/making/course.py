"""Write which picture stands in which row of each bundled bank, so that the same rows can be built
with another backbone: names and numbers of pictures, no pictures.

    python -m clip_adapter_lite.making.course --data ../shared/data
"""
import json
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from ..datasets.course import SPLITS_FILE
from ..datasets.fashion_mnist import EXCERPT
from ..splits import SPLITS
from .banks import datasets


def row(name: str, path: Path, data: Path) -> tuple[str, str]:
    """(folder, stem) of a picture: what tells it from others in its source."""
    parts = path.relative_to(data).parts
    return "/".join(parts[2 if name[:4] in ("calt", "dtd1", "pacs") else 1:-1]), path.stem


def rows(name: str, dataset, data: Path) -> dict:
    """Classes (folder → label) and, of each split, runs of a folder's pictures in the bank's order."""
    labels, found = {}, {}
    for split in SPLITS:
        named = [(*row(name, path, data), label) for path, label in dataset.splits[split]]
        labels |= {folder: label for folder, _, label in named}
        found[split] = [[folder, " ".join(stem for _, stem, _ in run)]
                        for folder, run in groupby(named, key=lambda one: one[0])]
    return {"classnames": dataset.classnames, "templates": dataset.templates,
            "protocol": dataset.protocol, "labels": labels, **found}


def main(data: Annotated[Path, typer.Option(help="The folder of real images that the bundled banks "
                                                 "were built from.")]):
    """Write the rows of the bundled banks."""
    found = {}
    for dataset in datasets(data, EXCERPT):
        if dataset.name != "fashion-mnist":  # whose rows follow from the official files
            capped = dataset.cap(train=48, val=16, test=2500)
            found[dataset.name] = rows(dataset.name, capped, data)
    lines = [f'  {json.dumps(name)}: {json.dumps(about, ensure_ascii=False, sort_keys=True)}'
             for name, about in sorted(found.items())]
    SPLITS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
