"""`notebooks/build.py` on tiny sources."""
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import typer
from course import BUILD
from nbformat.v4 import new_code_cell, new_notebook, new_output

SOURCE = '''# %% [markdown]
# # A title

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
x = 1

# %%
x = 1
'''
PNG = "iVBORw0KGgo="


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one notebook in an empty folder; gives a function that writes its source, or appends cells to it."""
    (tmp_path / "notebooks/src").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(BUILD, "HERE", tmp_path / "notebooks")
    setup = tmp_path / "setup.py"
    setup.write_text('REPOSITORY = ""\n')
    monkeypatch.setattr(BUILD, "SETUP", setup)

    def write(cells="", text=SOURCE):
        path = tmp_path / "notebooks/src/00_tiny.py"
        path.write_text(text + cells)
        return path
    return write


def executed(*outputs):
    """A notebook of one cell with these outputs, as nbclient leaves it."""
    cell = new_code_cell("x", execution_count=1, outputs=list(outputs), metadata={"execution": {"iopub.status.busy": "t"}})
    language = {"name": "python", "version": "3.11"}
    return new_notebook(cells=[cell], metadata={"widgets": {"state": 1}, "language_info": language})


def keep(source, change=lambda notebook: None):
    """Write the notebook of a source, changed, where the committed one belongs."""
    notebook = BUILD.converted(source)
    change(notebook)
    nbformat.write(notebook, BUILD.HERE / "00_tiny.ipynb")


def test_ids_are_valid_all_different_and_the_same_every_time(course):
    ids = [cell.id for cell in BUILD.converted(course()).cells]
    assert ids == [cell.id for cell in BUILD.converted(course()).cells]
    assert len(set(ids)) == 4  # though two cells have the same source
    assert all(re.fullmatch("[a-zA-Z0-9-_]{1,64}", one) for one in ids)


def test_a_new_cell_leaves_the_ids_of_the_others_alone(course):
    before = {cell.id for cell in BUILD.converted(course()).cells}
    source = course(text=SOURCE.replace("# %%\nx", "# %%\nnew = 2\n\n# %%\nx", 1))
    after = {cell.id for cell in BUILD.converted(source).cells}
    assert before < after and len(after) == 5


def test_cells_tags_and_metadata_come_out_as_they_should(course):
    notebook = BUILD.converted(course('\n# %% tags=["hide"]\n# %matplotlib inline\ny = 2\n'))
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code", "code"]
    assert notebook.cells[0].source == "# A title"
    assert notebook.cells[4].source == "%matplotlib inline\ny = 2" and notebook.cells[4].metadata.tags == ["hide"]
    assert notebook.metadata == BUILD.METADATA and "3.11" not in str(notebook.metadata)


@pytest.mark.parametrize("text", [SOURCE.replace(' tags=["setup"]', ""), SOURCE.replace("# set-up", "# my set-up"),
                                  SOURCE + '\n# %% tags=["setup"]\n# set-up: filled in by notebooks/build.py\n'])
def test_a_source_without_exactly_one_place_for_the_set_up_is_refused(course, text):
    with pytest.raises(ValueError, match="must have one cell tagged \"setup\""):
        BUILD.converted(course(text=text))


def test_there_is_a_badge_only_with_a_github_address_and_the_address_has_one_place(course):
    pyproject = BUILD.HERE.parent / "pyproject.toml"
    assert BUILD.repository() == ""
    pyproject.write_text('[project.urls]\nPaper = "https://arxiv.org/abs/2110.04544"\n')
    assert BUILD.repository() == ""
    assert "colab.research" not in str(BUILD.converted(course(), BUILD.repository()))
    pyproject.write_text('[project.urls]\nRepository = "https://github.com/someone/thing/"\n')
    assert BUILD.repository() == "https://github.com/someone/thing"
    title, badge, setup, *_ = BUILD.converted(course(), BUILD.repository()).cells
    page = "https://colab.research.google.com/github/someone/thing/blob/main/notebooks/00_tiny.ipynb"
    assert badge.cell_type == "markdown" and badge.source.endswith(f"]({page})")
    assert setup.source.startswith('REPOSITORY = "https://github.com/someone/thing"\n')
    assert title.source == "# A title"


def test_a_notebook_that_matches_its_source_has_no_drift_whatever_its_outputs_are(course):
    source = course()

    def run(notebook):
        notebook.cells[2].update(execution_count=2, outputs=[new_output("stream", text="hello")])
    keep(source, run)
    assert BUILD.drift(source) == ""


def change(**fields):
    return lambda notebook: notebook.cells[2].update(fields)


@pytest.mark.parametrize("edit, named", [
    (change(source="x = 2"), "cell 2: source"),
    (change(cell_type="raw"), "cell 2: cell_type"),
    (change(metadata={"tags": ["new"]}), "cell 2: metadata"),
    (change(id="other"), "cell 2: id"),
    (lambda notebook: notebook.cells.pop(), "cell 3: missing"),
    (lambda notebook: notebook.cells.append(new_code_cell("y")), "cell 4: not in the source"),
    (lambda notebook: notebook.metadata.update(widgets={}), "metadata differs"),
    (lambda notebook: notebook.cells.reverse(), "cell 0: cell_type")])
def test_what_drifted_is_named(course, edit, named):
    source = course()
    keep(source, edit)
    assert BUILD.drift(source).startswith(named)


def test_check_passes_fails_and_says_which_notebook(course, capsys):
    source = course()
    keep(source)
    BUILD.main(None, check=True)
    assert capsys.readouterr().err == ""
    course("\n# %%\nz = 3\n")
    with pytest.raises(typer.Exit) as stopped:
        BUILD.main(None, check=True)
    assert stopped.value.exit_code == 1
    assert "00_tiny: cell 4: missing" in capsys.readouterr().err
    (BUILD.HERE / "00_tiny.ipynb").unlink()
    with pytest.raises(typer.Exit):
        BUILD.main(["00_tiny"], check=True)
    assert "there is no notebook" in capsys.readouterr().err


def test_a_notebook_without_a_source_and_an_unknown_name_are_refused(course, capsys):
    keep(course())
    (BUILD.HERE / "01_stray.ipynb").write_text("{}")
    with pytest.raises(typer.Exit):
        BUILD.main(None, check=True)
    assert "01_stray: has no source" in capsys.readouterr().err
    with pytest.raises(typer.BadParameter, match="no notebook 02_none; there are 00_tiny"):
        BUILD.main(["02_none"])


def test_a_widget_becomes_a_line_of_text_and_the_rest_stays():
    view = new_output("execute_result", {BUILD.WIDGET: {"model_id": "1"}, "text/plain": "VBox(children=…)"})
    figure, text = new_output("display_data", {"image/png": PNG}), new_output("stream", text="hello")
    notebook = executed(text, view, figure)
    BUILD.publishable(notebook)
    assert notebook.metadata == BUILD.METADATA and notebook.cells[0].metadata == {}
    first, second, third = notebook.cells[0].outputs
    assert (first, third) == (text, figure)
    assert second.data == {"text/plain": "run this cell to interact", "text/html": "<i>run this cell to interact</i>"}
    nbformat.validate(notebook)


@pytest.mark.parametrize("output, named", [
    (new_output("stream", name="stderr", text="UserWarning: old\n"), "cell 0 has stderr in its output.*UserWarning: old"),
    (new_output("error", ename="ValueError", evalue="no bank"), "cell 0 has an error in its output.*no bank")])
def test_errors_and_warnings_in_outputs_are_refused(output, named):
    with pytest.raises(ValueError, match=named):
        BUILD.publishable(executed(output))


def test_a_notebook_that_is_too_big_leaves_the_old_one_alone(tmp_path):
    path = tmp_path / "00_tiny.ipynb"
    BUILD.write(executed(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"1\.6 MB, over 1\.5 MB"):
        BUILD.write(executed(new_output("display_data", {"image/png": "A" * 1_600_000})), path)
    assert path.read_bytes() == before and before.endswith(b"}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["00_tiny.ipynb"]


@pytest.mark.slow
@pytest.mark.notebook
def test_building_runs_the_cells_and_keeps_figures_and_text_but_no_widget(course, capsys):
    source = course('''
# %%
import os
print(x, os.environ["OMP_NUM_THREADS"], os.path.basename(os.getcwd()))

# %%
from matplotlib.figure import Figure
figure = Figure(figsize=(1, 1))
figure.subplots()
figure

# %%
import ipywidgets
written = ipywidgets.Output()
with written:
    print("into the widget")
written
''')
    BUILD.main(["00_tiny"])
    assert re.fullmatch(r"00_tiny: \d+ s\n", capsys.readouterr().out)
    assert BUILD.drift(source) == ""
    notebook = nbformat.read(BUILD.HERE / "00_tiny.ipynb", as_version=4)
    *_, said, figure, widget = notebook.cells
    assert said.outputs[0].text == "1 1 notebooks\n"
    assert "image/png" in figure.outputs[0].data
    assert [output.data["text/plain"] for output in widget.outputs] == ["run this cell to interact"]
    assert "into the widget" not in str(widget.outputs) and "execution" not in widget.metadata


@pytest.mark.slow
@pytest.mark.notebook
def test_a_failing_cell_stops_the_build_names_it_and_writes_nothing(course, capsys):
    course('\n# %%\nraise ValueError("no such bank")\n')
    with pytest.raises(typer.Exit):
        BUILD.main(None)
    said = capsys.readouterr().err
    assert "00_tiny" in said and "no such bank" in said and "1 of 1 notebooks failed: not written." in said
    assert not (BUILD.HERE / "00_tiny.ipynb").exists()


def test_the_folder_for_colab_has_the_wheel_and_the_kept_notebooks_with_todays_set_up_cell(course, tmp_path, monkeypatch):
    def outdated(notebook):
        notebook.cells[1].source = "old set-up"
        notebook.cells[2].outputs = [new_output("stream", text="kept\n")]
    keep(course(), outdated)
    monkeypatch.setattr(BUILD.subprocess, "run", lambda command, **_: Path(
        command[-2], "clip_adapter_lite-9-py3-none-any.whl").touch() or SimpleNamespace(returncode=0))
    folder = tmp_path / "_colab"
    folder.mkdir()
    (folder / "clip_adapter_lite-8-py3-none-any.whl").touch()
    (folder / "mine.txt").touch()
    found = [path.name for path in BUILD.colab(folder)]
    assert found == ["00_tiny.ipynb", "clip_adapter_lite-9-py3-none-any.whl", "mine.txt"]
    notebook = nbformat.read(folder / "00_tiny.ipynb", as_version=4)
    assert notebook.cells[1].source == BUILD.setup_cells("00_tiny", "")[-1].source
    assert notebook.cells[2].outputs[0].text == "kept\n"


def test_a_wheel_that_cannot_be_built_leaves_the_old_one(course, tmp_path, monkeypatch):
    monkeypatch.setattr(BUILD.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="x\nno setuptools\n"))
    (tmp_path / "_colab").mkdir()
    old = tmp_path / "_colab/clip_adapter_lite-8-py3-none-any.whl"
    old.touch()
    with pytest.raises(ValueError, match="the wheel could not be built: .*no setuptools"):
        BUILD.colab(tmp_path / "_colab")
    assert old.exists()
