"""The command line: `clip-adapter-lite --help`."""
from rich.console import Console
from rich.markup import escape

from . import banks, datasets, inference, reproduce, studies  # noqa: F401  (their commands enter the application)
from .app import app


def main() -> None:
    """Run the command line; an error the user can mend is one sentence, not a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, OSError, RuntimeError) as error:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
