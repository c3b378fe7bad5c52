"""The committed notebooks: made from their sources, executed, clean, and in the shape that the course promises."""
import base64
import re
from statistics import median

import pytest
from course import BUILD, NOTEBOOKS, SOURCES, code_cells, is_checked, kept

pytestmark = pytest.mark.notebook  # they need the built notebooks; `make test` runs them as a part of their own
every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def words(cells) -> int:
    """Words of prose in markdown cells; tables, addresses and tags are none."""
    text = "\n".join(line for cell in cells for line in cell.source.splitlines() if not line.startswith("|"))
    text = re.sub(r"\]\([^)]*\)|<[^>]*>", " ", text)
    return len([word for word in text.split() if re.search(r"\w", word)])


def lines(cell) -> int:
    """Lines of code: neither empty nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in cell.source.splitlines())


def outputs(notebook):
    """(number of the cell, output) of all outputs."""
    return [(n, output) for n, cell in enumerate(notebook.cells) for output in cell.get("outputs", [])]


def texts(output) -> list[str]:
    data = output.get("data", {})
    return [output.get("text", ""), *(value for mime, value in data.items() if mime.startswith("text/"))]


def test_there_are_notebooks_and_none_without_a_source():
    assert SOURCES
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {source.stem for source in SOURCES}


@every_notebook
def test_the_notebook_is_what_its_source_gives(source):
    assert BUILD.drift(source) == ""


@every_notebook
def test_every_code_cell_was_executed_in_order(source):
    cells = code_cells(kept(source))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@every_notebook
def test_no_output_is_an_error_a_warning_a_widget_or_a_path_of_this_machine(source):
    notebook = kept(source)
    assert "widgets" not in notebook.metadata
    for n, output in outputs(notebook):
        assert output.output_type != "error" and output.get("name") != "stderr", f"cell {n}"
        assert not any("widget" in mime for mime in output.get("data", {})), f"cell {n}"
        for text in texts(output):
            assert not re.search(r"(^|[\s'\"(=])/(work|home|root|tmp|usr|opt)/|Warning:|━━|\d+it/s| at 0x[0-9a-f]", text), \
                f"cell {n}: {text[:200]}"


@every_notebook
def test_nothing_of_the_machine_or_the_time_is_recorded(source):
    notebook = kept(source)
    assert notebook.metadata == BUILD.METADATA
    assert not [n for n, cell in enumerate(notebook.cells) if "execution" in cell.metadata]
    assert (NOTEBOOKS / f"{source.stem}.ipynb").stat().st_size < 1.5e6


@every_notebook
def test_cells_are_short(source):
    counts = [lines(cell) for cell in code_cells(kept(source))]
    assert max(counts) <= 40
    assert median(counts) <= 6


@every_notebook
def test_there_is_little_prose_between_two_code_cells(source):
    cells = kept(source).cells
    code = [n for n, cell in enumerate(cells) if cell.cell_type == "code"]
    long = {f"cells {a + 1} to {b - 1}": words(cells[a + 1:b]) for a, b in zip(code, code[1:]) if words(cells[a + 1:b]) > 80}
    assert not long


@every_notebook
def test_it_opens_with_what_you_learn_need_and_spend_and_whose_features_these_are(source):
    notebook = kept(source)
    opening, code = notebook.cells[0], code_cells(notebook)
    assert opening.cell_type == "markdown" and opening.source.startswith("# ")
    for part in ("What you will learn", "Prerequisites", "Minutes"):
        assert part in opening.source
    assert re.search(r"about \d+ minutes to read.*\d+ s to run", opening.source, re.DOTALL)
    page_one = notebook.cells[:notebook.cells.index(code[2])]
    assert "pocket CLIP" in "".join(cell.source for cell in page_one if cell.cell_type == "markdown")


@every_notebook
def test_it_ends_with_the_finding_three_questions_and_the_exercise(source):
    text = "\n".join(cell.source for cell in kept(source).cells if cell.cell_type == "markdown")
    _, _, finding = text.partition("What we found against what the paper says")
    _, _, questions = finding.partition("Check your understanding")
    assert questions.count("<details>") == questions.count("</details>") == 3
    assert questions.count("<summary>") == questions.count("</summary>") == 3
    assert re.search("exercise", questions.rpartition("</details>")[2], re.IGNORECASE)
    assert "**Predict:**" in text


@every_notebook
def test_no_printed_line_wraps_on_the_page(source):
    """JupyterLab and the site break lines of more than about a hundred characters, within words."""
    long = [(n, line) for n, output in outputs(kept(source)) if output.output_type == "stream"
            for line in output.text.splitlines() if len(line) > 100]
    assert not long


@every_notebook
def test_marked_numbers_of_the_prose_are_those_of_the_outputs(source):
    """Behind a number that an output must bear out stands <!-- shown: the words of that output -->."""
    notebook = kept(source)
    shown = "\n".join(text for _, output in outputs(notebook) for text in texts(output))
    for cell in notebook.cells:
        marks = re.findall(r"([\d.]+)<!-- shown: (.+?) -->", cell.source) if cell.cell_type == "markdown" else []
        assert len(marks) == cell.source.count("<!-- shown") or cell.cell_type == "code"
        assert not [mark for mark in marks if mark[0] not in mark[1] or mark[1] not in shown]


@every_notebook
def test_no_figure_is_wider_than_the_page(source):
    pictures = [(n, base64.b64decode(output.data["image/png"])) for n, output in outputs(kept(source))
                if "image/png" in output.get("data", {})]
    widths = {n: int.from_bytes(picture[16:20], "big") for n, picture in pictures}  # of PNG's first chunk
    assert not {n: width for n, width in widths.items() if width > 1110}


@every_notebook
def test_every_figure_has_a_caption(source):
    cells = kept(source).cells
    figures = [n for n, cell in enumerate(cells) if any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))]
    bare = [n for n in figures if n + 1 == len(cells) or not cells[n + 1].source.startswith("*Figure:")]
    assert figures and not bare


@every_notebook
def test_at_least_three_cells_are_compared_by_nbval_and_each_has_text_to_compare(source):
    checked = [cell for cell in kept(source).cells if is_checked(cell)]
    assert len(checked) >= 3
    for cell in checked:
        assert cell.outputs and all("".join(texts(output)).strip() for output in cell.outputs), cell.source
    marked = [cell for cell in code_cells(kept(source)) if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert marked == checked, "the comment must be the cell's first line"


@every_notebook
def test_one_variable_at_the_top_changes_the_backbone(source):
    code = [cell.source for cell in code_cells(kept(source))]
    loads = [line.strip() for text in code[1:] for line in text.splitlines() if "FeatureBank.load(" in line]
    assert loads and code[1].startswith('BACKBONE = "pocket"')
    assert not [line for line in loads if not re.search(r"FeatureBank\.load\([^)]*, BACKBONE\)", line)]


@every_notebook
def test_relative_links_lead_somewhere(source):
    targets = [target.partition("#")[0] for cell in kept(source).cells if cell.cell_type == "markdown"
               for target in re.findall(r"\]\(([^)\s]+)\)", cell.source) if not target.startswith(("http", "attachment:"))]
    assert not [target for target in targets if not (NOTEBOOKS / target).exists()]
