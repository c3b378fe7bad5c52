"""The real grader over the named submissions: every score, the sentence that each learner sees, the notes."""
import html
import re

import nbformat
import pytest
from submitting import HERE, ROOT, SPECS, expected, full_marks, named, patched, write

from grade import grade_all  # isort: skip (from solutions/, which submitting puts on the path)
from assignments import HIDDEN_NOTE, built  # isort: skip
from submissions import found_in  # isort: skip
from watching import Limits  # isort: skip

LIMITS = Limits(seconds=10, clock=150)  # seconds of processor time: those of a busy machine's clock say little
MOST_SECONDS = 30  # of processor time, for one honest submission


@pytest.fixture(scope="session")
def assignments() -> dict:
    """{assignment: (source notebook, hand-out)}, made from solutions/src."""
    made = built({path.stem: path for path in sorted((ROOT / "solutions" / "src").glob("*.py"))})
    return {name: (made["solutions"][name], made["exercises"][name]) for name in made["solutions"]}


@pytest.fixture(scope="session")
def graded(assignments, request, tmp_path_factory):
    """{(assignment, name): (result, feedback page)} of the named submissions that this session tests, in one run."""
    folder = tmp_path_factory.mktemp("grading")
    specs = {item.callspec.params["spec"] for item in request.session.items
             if "spec" in getattr(getattr(item, "callspec", None), "params", {}) and "graded" in item.fixturenames}
    sources = {name: folder / "solutions" / name / f"{name}.ipynb" for name in {spec.parent.name for spec in specs}}
    for name, path in sources.items():
        write(assignments[name][0], path)
    for spec in specs:
        name = spec.parent.name
        write(patched(named(spec), *assignments[name]), folder / "submitted" / spec.stem / name / f"{name}.ipynb")
    submissions, remarks = found_in(folder / "submitted", list(sources))
    assert not remarks and len(submissions) == len(specs)
    results = grade_all(submissions, sources, folder / "grades", limits=LIMITS, folder=folder / "submitted")
    return {(one.assignment, one.student): (
        one, (folder / "grades" / "feedback" / one.assignment / f"{one.student}.html").read_text(encoding="utf-8"))
        for one in results}


def sentences(page: str) -> str:
    """What the checks say on a feedback page; not the checks' sources, which hold every sentence."""
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    return " ".join(re.findall(r"^AssertionError: (.*(?:\n(?!\n).*)*)", text, flags=re.MULTILINE))


def tag(spec) -> str:
    return str(spec.relative_to(HERE).with_suffix(""))


@pytest.mark.grader
@pytest.mark.parametrize("spec", SPECS, ids=tag)
def test_each_submission_gets_its_scores_its_sentence_and_its_notes(spec, graded, assignments):
    submission, solution = named(spec), assignments[spec.parent.name][0]
    result, page = graded[spec.parent.name, spec.stem]
    assert {name: score for name, score in result.scores.items() if name in expected(submission, solution)} == \
        expected(submission, solution)
    for sentence in submission.says:
        assert squeezed(sentence) in squeezed(sentences(page))
    notes = "; ".join(result.notes)
    for note in submission.notes:
        assert note in notes
    if not submission.notes:
        assert not notes
        assert result.seconds < MOST_SECONDS


@pytest.mark.grader
@pytest.mark.parametrize("spec", SPECS, ids=tag)
def test_no_feedback_page_shows_a_hidden_test(spec, graded, assignments):
    page = squeezed(html.unescape(re.sub(r"<[^>]+>", "", graded[spec.parent.name, spec.stem][1])))
    visible = squeezed("\n".join(cell.source for cell in assignments[spec.parent.name][0].cells
                                 if not cell.source.startswith(HIDDEN_NOTE)))
    for cell in assignments[spec.parent.name][0].cells:
        if cell.source.startswith(HIDDEN_NOTE):
            for line in cell.source.split("\n")[2:-1]:
                if len(line.strip()) > 30 and squeezed(line) not in visible:
                    assert squeezed(line) not in page


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.grader
def test_written_answers_wait_for_a_hand_and_blank_ones_do_not(graded, assignments):
    found = 0
    for (name, student), (result, _) in graded.items():
        written = [cell.metadata.nbgrader.grade_id for cell in assignments[name][0].cells
                   if cell.cell_type == "markdown" and "nbgrader" in cell.metadata]
        if student in ("solution", "blank"):
            assert list(result.waiting) == (written if student == "solution" else [])
            found += len(written)
    if not found:
        pytest.skip("no assignment with a written answer was graded in this session")


@pytest.mark.parametrize("spec", SPECS, ids=tag)
def test_named_submissions_fit_their_assignment(spec, assignments):
    submission, (solution, hand_out) = named(spec), assignments[spec.parent.name]
    nbformat.validate(patched(submission, solution, hand_out))
    marks = expected(submission, solution)
    if submission.says:
        assert sum(marks.values()) < sum(full_marks(solution).values())


@pytest.mark.parametrize("folder", sorted({spec.parent for spec in SPECS}), ids=lambda folder: folder.name)
def test_each_assignment_has_its_named_submissions(folder):
    found = {path.stem: named(path) for path in folder.glob("*.toml")}
    assert {"blank", "solution", "second", "calls_the_library"} <= set(found)
    assert found["blank"].start == "blank" and not found["blank"].edits and found["blank"].scores is None
    assert not found["solution"].edits and found["solution"].scores == {} == found["second"].scores
    assert sum(bool(one.says) for one in found.values()) >= 6
    assert sum(bool(one.notes) for one in found.values()) >= 2


def test_every_assignment_is_tested():
    assert {spec.parent.name for spec in SPECS} >= {path.stem for path in (ROOT / "solutions" / "src").glob("*.py")}
