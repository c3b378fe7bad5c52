"""The visible checks as learners get them: folded, and with the seals of the right values in the place of the values.

In a source (`solutions/src`) a check reads `check("what", found, right, {sentence: what that mistake gives})`. The builder
runs it on the source's own answers, and writes the seals of what `right` and the mistakes were into the notebook. Statements
that end with the comment `# the builder's` only make such values; they stay in the source.
"""
import ast
import contextlib
import io
import json
from contextlib import suppress
from unittest.mock import patch

from clip_adapter_lite import checks

ONLY_HERE = "# the builder's"
TITLE = "# @title Check your answer: {}. Run this cell; there is nothing to change in it."
WIDTH = 120


def sealed(notebook) -> None:
    """Seal and fold the visible checks of an nbgrader source notebook, in place.

    Raises ValueError, in one sentence, for an answer or a check that does not run, a check that refuses the source's own
    answer, and a `check(…)` that does not run exactly once.
    """
    original, namespace = checks.check, {**imports(notebook), "__name__": "check"}
    for cell in notebook.cells:
        about = cell.metadata.get("nbgrader", {})
        name = about.get("grade_id", "")
        if cell.cell_type != "code" or not (about.get("solution") or name.endswith("-visible")):
            continue
        seen = {}

        def record(what, found, right, mistakes=None, *, tolerance=checks.TOLERANCE, seen=seen, name=name):
            if what in seen:
                raise ValueError(f"the check {name!r} checks {what!r} twice; give each a text of its own.")
            original(what, found, right, mistakes, tolerance=tolerance)
            seen[what] = (checks.seal(what, right, tolerance),
                          {sentence: checks.seal(what, value, tolerance) for sentence, value in (mistakes or {}).items()})

        if about.get("solution"):
            run(cell.source, name, namespace)
            continue
        namespace["check"] = record
        with patch.object(checks, "check", record):  # for cells that import it
            run(cell.source, name, namespace)
        cell.source = "\n".join([TITLE.format(name.removesuffix("-visible")), rewritten(cell.source, name, seen)])
        cell.metadata["jupyter"] = {"source_hidden": True}
        cell.metadata["cellView"] = "form"  # Colab's way to fold
        cell.metadata["tags"] = ["hide-input"]  # the site's, and what it says
        cell.metadata["mystnb"] = {"code_prompt_show": "Show the check", "code_prompt_hide": "Hide the check"}


def imports(notebook) -> dict:
    """What the source's ordinary cells import: answers and checks build on it."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "nbgrader" not in cell.metadata:
            with suppress(SyntaxError):  # a line that is no Python
                lines = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Import | ast.ImportFrom)]
                with suppress(ImportError):
                    exec(compile(ast.Module(lines, []), "imports", "exec"), found)  # the instructor's own text
    return found


def run(source: str, name: str, namespace: dict) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, name, "exec"), namespace)  # the instructor's own text
    except ValueError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"the cell {name!r} of the source does not run: {type(error).__name__}: {text}") from error


def rewritten(source: str, name: str, seen: dict) -> str:
    """A check cell's source with the seals of `seen`, {what: (seal, {sentence: seal})}, in its calls of `check`."""
    tree, changes, told = ast.parse(source), [], set()
    starts = [0]
    for line in source.split("\n"):
        starts.append(starts[-1] + len(line) + 1)

    def at(line: int, column: int) -> int:
        text = source.split("\n")[line - 1]
        return starts[line - 1] + len(text.encode()[:column].decode())  # ast counts bytes

    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and source.split("\n")[node.end_lineno - 1].endswith(ONLY_HERE):
            changes.append((starts[node.lineno - 1], starts[node.end_lineno], ""))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
            what = node.args[0]
            if not isinstance(what, ast.Constant) or what.value not in seen:
                raise ValueError(f"the check {name!r} has a check(…) that did not run, or whose first argument is no text.")
            told.add(what.value)
            right, mistakes = seen[what.value]
            last = max([*node.args, *(keyword.value for keyword in node.keywords)], key=lambda one: (one.end_lineno,
                                                                                                     one.end_col_offset))
            line = source.split("\n")[node.lineno - 1]
            inside = " " * (len(line) - len(line.lstrip()) + 4)
            start = at(node.args[1].end_lineno, node.args[1].end_col_offset)
            before = start - starts[node.args[1].end_lineno - 1]
            text = (", " if before + len(right) < WIDTH - 8 else f",\n{inside}") + quoted(right)
            if mistakes:
                text += ", {\n" + ",\n".join(entry(inside, *pair) for pair in mistakes.items()) + "}"
            changes.append((start, at(last.end_lineno, last.end_col_offset), text))
    if set(seen) - told:
        raise ValueError(f"the check {name!r} has a check(…) that the builder cannot find: {sorted(set(seen) - told)[0]!r}.")
    for start, end, text in sorted(changes, reverse=True):
        source = source[:start] + text + source[end:]
    return source


def entry(indent: str, sentence: str, value: str) -> str:
    one = f"{indent}{quoted(sentence)}: {quoted(value)}"
    return one if len(one) < WIDTH else f"{indent}{quoted(sentence)}:\n{indent}    {quoted(value)}"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a text of Python's too
