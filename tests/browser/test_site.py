"""The reading site, opened from its files in headless Chromium: every link is followed, and every
page is there whole without a network.
"""
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from chromium import MARKS, headless

pytest.importorskip(
    "myst_nb", reason="the site's tools are not installed (pip install -e '.[site]')")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

import clip_adapter_lite as cal  # noqa: E402

pytestmark = MARKS
ROOT = Path(__file__).parents[2]
TEX = re.compile(r"\$[^$\s][^$]*\$|\\[a-zA-Z(\[]")
# What a page says of itself once its formulas are drawn; code may look like TeX.
LOOK = """
const done = arguments[0], formulas = document.querySelectorAll('.math');
const look = () => {
    const text = document.querySelector('article, main').cloneNode(true);
    text.querySelectorAll('pre, code, mjx-container, script').forEach(part => part.remove());
    done({text: text.textContent, links: [...document.querySelectorAll('a[href]')].map(a => a.href),
          ids: [...document.querySelectorAll('[id]')].map(part => part.id),
          undrawn: [...formulas].filter(one => !one.querySelector('mjx-container > svg')).length,
          wrong: document.querySelectorAll('[data-mjx-error], mjx-container [fill=red]').length,
          broken: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
          formulas: formulas.length, wide: document.documentElement.scrollWidth - innerWidth,
          folded: document.querySelectorAll('details.hide:not([open])').length,
          marked: document.body.textContent.match(/NBVAL|run this cell to interact/)});
};
formulas.length && window.MathJax ? MathJax.startup.promise.then(look) : look();
"""


@pytest.fixture(scope="module")
def site() -> Path:
    """The built site; `make site` has told of warnings, and what is built already is taken."""
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-c", "docs", ".", "_site"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ROOT / "_site"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = headless(tmp_path_factory.mktemp("profile"), {"browser": "ALL", "performance": "ALL"})
    try:
        driver.set_script_timeout(120)
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def pages(site, browser) -> dict[str, dict]:
    """Every page that links lead to from the front door, by its address, as `LOOK` sees it; with
    what it `asked` for and the `errors` of the console.
    """
    found, waiting = {}, [(site / "index.html").as_uri()]
    while waiting:
        address = waiting.pop()
        if address in found or not address.endswith(".html"):
            continue
        browser.get(address)
        if (here := urldefrag(browser.current_url)[0]) != address:  # the front door
            found[address] = {"links": [here], "ids": [], "text": ""}
            address = here
            browser.get(address)
        page = found[address] = browser.execute_async_script(LOOK)
        messages = [json.loads(entry["message"])["message"]
                    for entry in browser.get_log("performance")]
        page["asked"] = [message["params"]["request"]["url"] for message in messages
                         if message["method"] == "Network.requestWillBeSent"
                         and message["params"]["documentURL"].startswith("file:")]  # no new tab's
        page["errors"] = [  # the theme calls it an error that nobody has chosen light or dark yet
            entry["message"] for entry in browser.get_log("browser")
            if entry["level"] == "SEVERE" and "invalid theme mode" not in entry["message"]]
        waiting += [urldefrag(link)[0] for link in page["links"] if link.startswith("file:")]
    return found


def test_links_reach_a_page_for_each_notebook_and_exercise_and_nothing_else_is_missing(site, pages):
    sources = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("exercises/*/*.ipynb"),
               *(ROOT / name for name in ("README.md", "docs/api.md", "docs/architecture.md",
                                          "solutions/README.md"))]
    wanted = {(site / path.relative_to(ROOT)).with_suffix(".html").as_uri() for path in sources}
    assert len(sources) >= 12 + 6 + 4 and wanted <= set(pages)
    dead = []
    for address, page in pages.items():
        for link in page["links"]:
            target, anchor = urldefrag(link)
            if target.startswith("file:"):
                path = Path(unquote(urlsplit(target).path))
                known = pages[target]["ids"] if target in pages else []
                if not path.is_relative_to(site) or not path.is_file() or (
                        anchor and unquote(anchor) not in known):
                    dead.append((address, link))
    assert not dead


def test_every_formula_is_drawn_and_no_tex_is_left(pages):
    seen = {address: page for address, page in pages.items() if "formulas" in page}
    assert sum(page["formulas"] for page in seen.values()) >= 50
    assert not {address for address, page in seen.items() if page["undrawn"] or page["wrong"]}
    assert not {a: left for a, page in seen.items() if (left := TEX.findall(page["text"]))}


def test_nothing_is_asked_of_a_network_or_missed(pages):
    seen = {address: page for address, page in pages.items() if "asked" in page}
    assert not {a: far for a, page in seen.items() if (
        far := [url for url in page["asked"] if not url.startswith(("file:", "data:", "blob:"))])}
    assert not {a: page["errors"] for a, page in seen.items() if page["errors"]}
    assert not {a: page["broken"] for a, page in seen.items() if page["broken"]}


def test_notebooks_are_for_readers(site, pages):
    """Set-up cells and checks are folded, widgets say where they live, nothing is wider than the
    window."""
    notebooks = {address: page for address, page in pages.items()
                 if "/notebooks/" in address or "/exercises/" in address}

    def folded(address: str) -> int:  # the set-up, and what is folded in the notebook too
        path = ROOT / Path(unquote(urlsplit(address).path)).relative_to(site).with_suffix(".ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return 1 + sum("hide-input" in cell["metadata"].get("tags", ()) for cell in cells)

    assert not {a: page for a, page in notebooks.items()
                if page["folded"] != folded(a) or page["marked"] or page["wide"] > 0}
    assert sum(folded(a) > 6 for a in notebooks) == 6
    assert sum("live in JupyterLab" in page["text"] for page in notebooks.values()) >= 7


def test_the_api_page_has_every_public_name(site, pages):
    ids = set(pages[(site / "docs/api.html").as_uri()]["ids"])
    assert not {name for name in cal.__all__ if f"clip_adapter_lite.{name}" not in ids}


def test_search_finds_a_word_in_the_notebooks(site, browser):
    browser.get((site / "search.html").as_uri() + "?q=bottleneck")
    found = WebDriverWait(browser, 60).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "#search-results li a"))
    assert "notebooks/03_the_adapter.html" in " ".join(a.get_attribute("href") for a in found)


def test_a_quick_question_answers_without_a_kernel(site, browser):
    browser.get((site / "notebooks/01_zero_shot_clip.html").as_uri())
    first, = browser.find_elements(By.CSS_SELECTOR, ".quick-question")[:1]
    reasons = lambda: [one for one in first.find_elements(By.CSS_SELECTOR, ".right, .wrong")
                       if one.is_displayed()]
    assert reasons() == []
    for option in first.find_elements(By.TAG_NAME, "summary"):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", option)
        option.click()
        assert len(reasons()) == 1  # the one before is closed


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(site, browser, theme):
    """WCAG's 7 to 1, of the text and of a widget's notice, which stand on the page's own ground."""
    browser.get((site / "notebooks/04_rq1_prompt_tuning.html").as_uri())
    browser.execute_script(
        "document.querySelector(`.theme-change-button[data-mode=${arguments[0]}]`).click()", theme)
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    beneath, ground, *texts = browser.execute_script("""
        const article = document.querySelector('article'), notice = [...article.querySelectorAll(
            '.text_html')].find(one => one.textContent.includes('live in JupyterLab'));
        const [page, text, box, code] = [document.body, article, notice,
            notice.querySelector('code')].map(one => getComputedStyle(one));
        return [box.backgroundColor, page.backgroundColor, text.color, box.color, code.color]""")
    assert beneath == "rgba(0, 0, 0, 0)"
    for text in texts:
        light, dark = sorted(map(luminance, (ground, text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 7


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    channels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))
