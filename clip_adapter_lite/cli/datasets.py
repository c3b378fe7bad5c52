"""The command that shows the table of datasets: what each is, what it needs and where that goes."""
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..datasets import TABLE, downloadable, place
from ..files import located
from ..splits import SPLITS
from .app import app, console


@app.command()
def datasets(
    name: Annotated[list[str] | None, typer.Argument(help="Show all that is known of these; "
                                                          "without, one line of each.",
                                                     show_default=False)] = None,
    root: Annotated[Path | None, typer.Option(help="The folder that holds the datasets: say which "
                                                   "are there.",
                                              show_default=False)] = None,
):
    """List the datasets that build knows: size, splits, how to get them, licence, and where each
    has to lie.

    Example: `clip-adapter-lite datasets` or `clip-adapter-lite datasets stanford_cars sun397`
    """
    if unknown := [one for one in name or () if one not in TABLE]:
        raise ValueError(f"Unknown dataset '{unknown[0]}'; give one of {', '.join(TABLE)}.")
    root = root and located(root)
    if root and not root.is_dir():
        raise FileNotFoundError(f"No folder {root}; --root is the folder that holds the datasets.")
    if name:
        for one in name:
            console.print(_all_facts(one, root), "")
    else:
        console.print(_overview(root))
        console.print("Of one, its licence and source, what to fetch and where it goes: "
                      "clip-adapter-lite datasets NAME\nNumbers of pictures are those of CoOp's "
                      "split where there is one, whose file is fetched by hand.",
                      highlight=False, soft_wrap=True)


def _overview(root: Path | None) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title, side in (("dataset", "left"), ("classes", "right"), ("train/val/test", "right"),
                        ("size", "right"), ("there?" if root else "fetch", "left")):
        table.add_column(title, justify=side, no_wrap=True)
    for name, facts in TABLE.items():
        table.add_row(name, _number(facts["classes"]), _sizes(facts, "/"), facts["size"],
                      root and _presence(name, root) or _way_to_get(name))
    return table


def _all_facts(name: str, root: Path | None) -> Table:
    facts, folders = TABLE[name], [f"ROOT/{folder}" for folder in TABLE[name]["folders"]]
    table = Table(title=f"{name}: {facts['title']}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {"classes": _number(facts["classes"]), "pictures": _number(facts["pictures"]),
            "train / val / test": _sizes(facts, " / "), "prompt": "; ".join(facts["templates"]),
            "size": facts["size"], "licence": facts["licence"], "source": facts["source"],
            "looked for": ", ".join(folders), "CoOp's split": facts["split_json"]
            and f"ROOT/{facts['split_json']}", "by hand": facts["by_hand"],
            "there?": root and folders and (_presence(name, root) or "no"),
            "build": f"clip-adapter-lite build --dataset {name} --root ROOT --backbone RN50-quickgelu"
                     f"{' --download' if downloadable(name) else ''}"}
    for title, text in rows.items():
        if text:
            table.add_row(title, escape(text))
    return table


def _presence(name: str, root: Path) -> str:
    """"" if it is not, or for your own pictures."""
    folder, coops = place(name, root)
    return "" if folder is None else "with CoOp's split" if coops else "yes"


def _way_to_get(name: str) -> str:
    return "--download" if downloadable(name) else "by hand" if TABLE[name]["folders"] else ""


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _sizes(facts: dict, between: str) -> str:
    return between.join(str(facts["splits"][part]) for part in SPLITS) if facts["splits"] else ""
