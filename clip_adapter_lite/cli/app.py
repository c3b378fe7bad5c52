"""What all commands share: the application, the console, and how lists are read from options."""
import os
from typing import Annotated

import typer
from rich.console import Console

from ..banks import FeatureBank, list_banks
from ..files import located
from ..methods.labels import listed, names_listed

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown",
                  pretty_exceptions_show_locals=False,
                  help="Few-shot adaptation of CLIP on frozen features: CLIP-Adapter and what it "
                       "is judged against.\n\nStart with `clip-adapter-lite banks`, then "
                       "`clip-adapter-lite compare`.")
console = Console()
AllowFewer = Annotated[bool, typer.Option("--allow-fewer",
                                          help="Take what there is of a class with too few images.")]


def told(*lines: str) -> None:
    """Print lines as they are: names may hold what is markup, and a path is one word."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def banks_listed(text: str, backbone: str) -> list[FeatureBank]:
    """The banks of a list of names and paths with commas. A name may hold commas itself: what is
    longest and there is meant, with quotes around it or without.
    """
    known, found, rest = set(list_banks(backbone)), [], text.strip(" ,")
    while rest:
        first = listed(rest)[0]
        name, end = names_listed(first)[0], rest.index(first) + len(first)
        for stop in (place for place, sign in enumerate(f"{rest},") if sign == ","):
            longer = rest[:stop].strip()
            if longer[:1] == longer[-1:] and longer[:1] in ("'", '"'):
                longer = longer[1:-1]
            if longer in known or os.path.isfile(located(longer)):
                name, end = longer, stop
        found.append(FeatureBank.load(name, backbone))
        rest = rest[end:].strip(" ,")
    return found


def numbers(text: str, option: str) -> list[int]:
    """"1,2,4" → [1, 2, 4]. Raises typer.BadParameter, naming the option, for anything else."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise typer.BadParameter(f"{option} takes whole numbers with commas between them, such as "
                                 f"1,2,4; got '{text}'."
                                 ) from None
