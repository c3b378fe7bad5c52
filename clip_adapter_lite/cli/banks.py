"""Commands about feature banks and the machine they are on."""
from typing import Annotated

import typer
from rich.table import Table

from ..banks import SPLITS, FeatureBank, list_banks
from .app import app, console


@app.command()
def banks(backbone: Annotated[str, typer.Option(help="Whose banks to list.")] = "pocket"):
    """List the feature banks there are: classes, images, largest shots, split, zero-shot accuracy, source.

    Example: `clip-adapter-lite banks`
    """
    from ..methods import ZeroShot
    numbers = Table("bank", title=f"Feature banks of backbone '{backbone}'", title_justify="left")
    for title in ("classes", "train / val / test", "shots up to", "zero-shot %"):
        numbers.add_column(title, justify="right")
    origins = Table.grid(padding=(0, 2))
    for name in list_banks(backbone):
        bank = FeatureBank.load(name, backbone)
        episode = bank.episode(1, allow_fewer=True)
        numbers.add_row(name, str(len(bank.classnames)), " / ".join(str(len(bank.splits[s])) for s in SPLITS),
                        str(bank.max_shots), f"{100 * ZeroShot(device='cpu').fit(episode).accuracy(episode.test):.1f}")
        origins.add_row(name, f"{bank.meta.get('source', 'unknown source')}. {bank.meta.get('protocol', '')}.")
    console.print(numbers, "Where they come from, and how they were split:", origins)
    if backbone == "pocket":
        console.print("\nThe pocket CLIP's image tower is ImageNet-supervised: no number here says anything of OpenAI's "
                      "CLIP.")


@app.command()
def info():
    """Versions, devices, threads and folders: what to send along with a question.

    Example: `clip-adapter-lite info`
    """
    import platform

    import torch

    from ..backbones import best_device
    from ..banks import BUNDLED, cache_folder
    from ..compare import versions
    table = Table(show_header=False)
    facts = {"python": platform.python_version(), **versions(), "machine": platform.platform(),
             "device": str(best_device()), "threads": str(torch.get_num_threads()),
             "bundled banks": str(BUNDLED / "banks"), "cache": str(cache_folder())}
    for fact in facts.items():
        table.add_row(*fact)
    console.print(table)
