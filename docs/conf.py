"""The reading site (`make site`): Sphinx over the repository as it lies, so that links between its
files hold.

The notebooks are shown as they were committed, executed; nothing is run here, and no page loads
anything from a network.
"""
import re
from importlib.util import find_spec
from pathlib import Path

from myst_nb import sphinx_ext

project = "clip-adapter-lite"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["README.md", "docs/*.md", "notebooks/*.ipynb", "exercises/**/*.ipynb",
                    "solutions/README.md", "clip_adapter_lite/pocket/MODEL_CARD.md"]
exclude_patterns = [".*", "_site", "build", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
sphinx_ext.OUTPUT_FOLDER = "_site/.doctrees/outputs"  # not in a folder beside the site
nb_code_prompt_show, nb_code_prompt_hide = "Show the set-up", "Hide the set-up"  # see `prepared`
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # exercises have third-level headings, some below the title

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False,
                      "home_page_in_toc": True, "navbar_persistent": [], "footer_content_items": [],
                      "show_toc_level": 2}
html_copy_source = html_domain_indices = False
html_show_search_summary = False  # a page that is opened as a file may not fetch them

# MathJax from the site itself, as SVG: a page that is opened as a file may not load fonts.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg.js"
html_static_path, html_css_files = ["site.css", str(MATHJAX)], ["site.css"]
mathjax_path = MATHJAX.name

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100
default_role = "code"  # our docstrings write `name`

SETTING = re.compile(r"(\w+(?:, \w+)*): ")
LIVE = ("<p><em>A widget: it is live in JupyterLab (<code>make lab</code>), where you move its "
        "controls and the figure follows.</em></p>")


def restructured(app, what, name, obj, options, lines: list[str]) -> None:
    """Our docstrings in reStructuredText: `setting: what it is` becomes an entry of a list, the
    rest plain paragraphs.
    """
    text, entry, indented = [], False, False
    for line in escaped("\n".join(lines)).split("\n"):
        raises = line.startswith("Raises ")
        if found := SETTING.match(line):
            text += ["", f"* **{found[1]}**: {line[found.end():]}"]
            entry, indented = True, False
        elif entry and line.strip() and not raises and (line.startswith(" ") or not indented):
            text.append(f"  {line.strip()}")
            indented = line.startswith(" ")
        else:
            text += [*([""] if entry or raises else []), line.strip()]
            entry = False
    lines[:] = text


def escaped(text: str) -> str:
    """Stars, bars and trailing underscores mean nothing in our docstrings outside of `code`, and
    letters may follow that at once.
    """
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts[::2]]
    parts[2::2] = [re.sub(r"^(?=\w)", r"\\ ", part) for part in parts[2::2]]
    return "`".join(parts)


def parsable(app, what, name, obj, options, signature: str | None, returned: str | None):
    """Signatures as Python: Sphinx prints a dataclass's whole as it comes if a default is none."""
    return signature and signature.replace("<factory>", "..."), returned


def prepared(app, name: str, source: list[str]) -> None:
    """A notebook as a page: its set-up folded, its widgets announced, without marks for tests; a
    link to the folder of exercises leads to their list.
    """
    if name.startswith(("notebooks/", "exercises/")):
        text = re.sub(r'"tags":\s*\[\s*"setup"\s*\]', '"tags": ["hide-input"]', source[0])
        text = text.replace("<i>run this cell to interact</i>", LIVE)
        text = text.replace(r'"# NBVAL_CHECK_OUTPUT\n",', "")
        source[0] = text.replace("](../exercises/)", "](../docs/index.md#exercises)")


def front_door(app, error) -> None:
    """_site/index.html, which leads to the first page."""
    if not error:
        page = (f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
                f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
                f'<a href="{root_doc}.html">{project}</a>\n')
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", restructured)
    app.connect("autodoc-process-signature", parsable)
    app.connect("source-read", prepared)
    app.connect("build-finished", front_door)
