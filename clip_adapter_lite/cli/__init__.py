"""The command line: `clip-adapter-lite --help`."""
import os
import sys

from rich.console import Console
from rich.markup import escape

# their commands enter the application
from . import banks, datasets, fitting, inference, reproduce, studies  # noqa: F401
from .app import app


def main() -> None:
    """Run the command line; an error the user can mend is one sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's stream, or a notebook's, has another class
            stream.reconfigure(errors="stand-in")  # of naming.py
    try:
        app()
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", highlight=False,
                                   soft_wrap=True)
        raise SystemExit(2) from None
