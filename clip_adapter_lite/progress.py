"""The progress bar of everything that takes more than two seconds: what is done, of how much, and
the time left.
"""


def bar(*facts, shown: bool = True):
    """A Rich `Progress` with these columns after the bar itself; not `shown`, it prints nothing.

    facts: columns, or words (a task's own fields in braces).
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    columns = [TextColumn(fact) if isinstance(fact, str) else fact for fact in facts]
    name = TextColumn("{task.description}", markup=False)  # may hold brackets
    return Progress(name, BarColumn(), *columns, TimeRemainingColumn(),
                    TextColumn("left"), disable=not shown)
