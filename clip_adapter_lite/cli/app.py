"""What all commands share: the application, the console, and how lists are read from options."""
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown",
                  pretty_exceptions_show_locals=False,
                  help="Few-shot adaptation of CLIP on frozen features: CLIP-Adapter and what it "
                       "is judged against.\n\nStart with `clip-adapter-lite banks`, then "
                       "`clip-adapter-lite compare`.")
console = Console()
AllowFewer = Annotated[bool, typer.Option("--allow-fewer",
                                          help="Take what there is of a class with too few images.")]


def numbers(text: str, option: str) -> list[int]:
    """"1,2,4" → [1, 2, 4]. Raises typer.BadParameter, naming the option, for anything else."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise typer.BadParameter(f"{option} takes whole numbers with commas between them, such as "
                                 f"1,2,4; got '{text}'."
                                 ) from None
