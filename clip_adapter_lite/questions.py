"""Quick questions of the notebooks: an answer chosen or typed, and why it is right or wrong.

HTML and CSS alone, so that they answer offline, in Colab, in a notebook that nobody has run and on
the reading site.
"""
import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from html import escape

from .files import BUNDLED

STYLE = """<style>
.quick-question { border-left: 4px solid #0072b2; padding: 2px 10px; max-width: 44em; line-height: 1.45 }
.quick-question p { margin: 4px 0 }
.quick-question summary { cursor: pointer; padding: 1px 0; display: list-item }
.quick-question details p { margin-left: 18px }
.quick-question details[open] > .right, .quick-question input:user-valid ~ .right,
.quick-question details[open] > .wrong, .quick-question input:user-invalid ~ .wrong
  { display: block !important }
.quick-question .right::before { content: "✓ Right. "; font-weight: bold }
.quick-question .wrong::before { content: "✗ Not so. "; font-weight: bold }
</style>"""


@dataclass(frozen=True)
class Question:
    """A question with feedback. answers: (text, whether right, why) each, to choose from; or none,
    and then a number is typed, right from low to high, with the feedback `right` and `wrong`.
    """
    key: str
    ask: str
    answers: tuple[tuple[str, bool, str], ...] = ()
    between: tuple[float, float] | None = None
    right: str = ""
    wrong: str = ""

    def __repr__(self):
        return "\n".join([self.ask, *(f"  - {text}" for text, _, _ in self.answers)])

    def _repr_html_(self):
        # `style`: hidden until chosen, also where a viewer drops the style sheet's rules for inputs
        said = '<p class="{}" style="display: none">{}</p>'.format
        if self.between:
            low, high = self.between
            body = (f'<input type="number" step="any" required min="{low}" max="{high}" '
                    f'aria-label="your answer" data-lm-suppress-shortcuts="true"> then Tab'
                    f'{said("right", escape(self.right))}{said("wrong", escape(self.wrong))}')
        else:
            body = "".join(f'<details name="{self.key}"><summary>{escape(text)}</summary>'
                           f'{said("right" if right else "wrong", escape(why))}</details>'
                           for text, right, why in self.answers)
        return (f'{STYLE}<div class="quick-question"><p><b>Quick question.</b> {escape(self.ask)}'
                f'</p>{body}</div>')


@cache
def questions() -> dict[str, Question]:
    """All questions by "NN/name", NN being the notebook's number."""
    found = {}
    for path in sorted((BUNDLED / "questions").glob("*.json")):
        for name, content in json.loads(path.read_text(encoding="utf-8")).items():
            key = f"{path.stem}/{name}"
            found[key] = Question(key, **content)
    return found


def ask(key: str) -> Question:
    """A question of a notebook, by "NN/name". Raises ValueError if there is none of that name."""
    if key not in questions():
        near = get_close_matches(key, questions(), 1, 0) or ["none"]
        raise ValueError(f"There is no question '{key}' (the nearest is '{near[0]}'); give one of "
                         "clip_adapter_lite.questions.questions().")
    return questions()[key]
