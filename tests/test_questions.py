"""The quick questions: one answer is right, each has its reason, and every notebook's prompt has one."""
import json
import re
from pathlib import Path

import pytest
from conftest import expect_refusal

from clip_adapter_lite.questions import Question, ask, questions

SOURCES = sorted((Path(__file__).parents[1] / "notebooks" / "src").glob("[0-9]*.py"))


@pytest.mark.parametrize("key", questions())
def test_a_question_has_one_right_answer_and_a_reason_for_each(key):
    question = questions()[key]
    assert question.ask.endswith("?")
    if question.between:
        low, high = question.between
        assert low <= high and not question.answers
        reasons = [question.right, question.wrong]
    else:
        texts = [text for text, _, _ in question.answers]
        assert 3 <= len(texts) == len(set(texts)) <= 4
        assert [right for _, right, _ in question.answers].count(True) == 1
        reasons = [why for _, _, why in question.answers]
    for text in [question.ask, *reasons]:
        assert text == text.strip() and 10 < len(text) <= 320 and not re.search(r"[<>$`*]\S*[<>$`*]|!", text), text
    assert all(reason.endswith(".") for reason in reasons) and len(set(reasons)) == len(reasons)


def test_the_right_answer_is_at_no_place_more_often_than_half():
    places = [[right for _, right, _ in q.answers].index(True) for q in questions().values() if q.answers]
    assert max(places.count(place) for place in set(places)) <= len(places) / 2


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_prompt_is_followed_by_its_question_before_the_next_code(source):
    cells = re.split(r"^# %%", source.read_text(encoding="utf-8"), flags=re.M)
    asked = []
    for cell, after in zip(cells, [*cells[1:], ""]):
        if re.search(r"^# .*\*\*Predict[:,*]", cell, re.M) and cell.startswith(" [markdown]"):
            found = re.fullmatch(r'\s*ask\("([^"]+)"\)\s*', after)
            assert found, f"no question after: {cell[:200]}"
            asked.append(found[1])
    assert asked == [key for key in questions() if key.startswith(source.stem[:2])]


def test_a_choice_shows_its_reasons_only_when_chosen_and_nothing_as_html():
    shown = Question("x", "a < b?", (("<b>", False, "not & that."), ("2", True, "so.")))._repr_html_()
    assert "a &lt; b?" in shown and "&lt;b&gt;" in shown and "not &amp; that." in shown
    assert "<b>" not in shown.split("</b>", 1)[1]
    assert shown.count('style="display: none"') == 2 and shown.count('name="x"') == 2
    assert repr(Question("x", "a < b?", (("one", True, "so."),))) == "a < b?\n  - one"


def test_a_number_is_held_to_its_limits_by_the_browser():
    shown = Question("x", "how many?", between=(3, 4.5), right="yes.", wrong="no.")._repr_html_()
    assert 'min="3" max="4.5"' in shown and "required" in shown and 'step="any"' in shown


def test_an_unknown_question_names_the_nearest():
    key = next(iter(questions()))
    with expect_refusal(f"nearest is '{key}'", ValueError):
        ask(key + "x")


def test_no_field_is_unknown():
    for path in (Path(__file__).parents[1] / "clip_adapter_lite" / "bundled" / "questions").glob("*.json"):
        for content in json.loads(path.read_text(encoding="utf-8")).values():
            assert set(content) in ({"ask", "answers"}, {"ask", "between", "right", "wrong"})
