"""All notebooks with one variable changed, the whole path: the course's banks are made from small real files in the
public datasets' layouts with a CLIP whose image tower is built as RN50's (random weights), and the notebooks run on them.

Random features: only that the notebooks run is checked.
"""
import sys

import pytest
from course import BUILD, NOTEBOOKS, ROOT, SOURCES, code_cells, quiet

sys.path.insert(0, str(ROOT / "tests"))
from course_files import whole_model, write_files  # noqa: E402

from clip_adapter_lite import course_banks  # noqa: E402
from clip_adapter_lite.course import NOTEBOOKS as LOADED  # noqa: E402
from clip_adapter_lite.datasets.course import COURSE  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.notebook]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder with a cache of the course's banks, the backbone's name)."""
    folder = tmp_path_factory.mktemp("another-backbone")
    name, root = whole_model(folder / "rn"), folder / "data"
    root.mkdir()
    for bank in COURSE:
        write_files(bank, root, test=20 if bank == "rsscn7" else 4)  # t-SNE wants more points than its perplexity
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_ADAPTER_LITE_CACHE", str(folder / "cache"))
        found = course_banks(name, root, download=False, progress=False, tell=lambda line: None)
    assert found.built == list(COURSE) and not found.lacking and not found.notebooks_left_out
    return folder, name


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_notebook_runs_with_another_backbone(source, made):
    folder, name = made
    notebook = BUILD.converted(source)
    top = next(cell for cell in code_cells(notebook) if cell.source.startswith('BACKBONE = "pocket"'))
    top.source = f'BACKBONE = "{name}"\n' + top.source.partition("\n")[2]
    noted = "import os\nfrom pathlib import Path\nimport clip_adapter_lite as cal\n_load = cal.FeatureBank.load.__func__\n" \
            "def _noting(cls, name, *rest, **options):\n    with open(os.environ['LOADED'], 'a') as file:\n" \
            "        file.write(f'{Path(str(name)).stem}\\n')\n    return _load(cls, name, *rest, **options)\n" \
            "cal.FeatureBank.load = classmethod(_noting)\n"
    top.source = noted + top.source
    loaded = folder / f"{source.stem}.loaded"
    BUILD.execute(notebook, NOTEBOOKS, **quiet(folder) | {"LOADED": str(loaded)})
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert not [o for cell in code_cells(notebook) for o in cell.outputs
                if o.output_type == "error" or o.get("name") == "stderr"]
    used = set(loaded.read_text().split()) & set(COURSE)
    if source.stem[:2] not in ("01", "11"):  # these take whatever there is
        assert used == set(LOADED[source.stem[:2]]), "clip_adapter_lite/course.py says which banks a notebook loads"
