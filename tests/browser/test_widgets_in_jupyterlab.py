"""Each widget in a real JupyterLab, in headless Chromium: its control is moved from the keyboard and the figure changes."""
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from chromium import MARKS, headless

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (pip install -e '.[notebooks]')")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = MARKS
PATIENCE = 600  # seconds, for a machine that does other things too
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}
SETUP = """
import numpy
import clip_adapter_lite as cal
from clip_adapter_lite import plots, widgets
bank = cal.FeatureBank.load("pacs-photo")
episode = bank.episode(4, 1)
draw = numpy.random.default_rng(0)
labels = numpy.arange(60) % 3
panels = {(s, p, 0): draw.normal(size=(60, 2)) + 3 * labels[:, None] for s in ("CLIP", "adapted") for p in (10, 30)}
table = cal.compare([bank], ["zero-shot", cal.CLIPAdapter(alpha=0.2, steps=5)], shots=[1, 2], seeds=[1, 2])
strangers = cal.open_set(bank, cal.CLIPAdapter(alpha=0.2, steps=5), shots=2, false_reject=0.1)
kept, held_out = bank.hold_out()
fitted = cal.CLIPAdapter(alpha=0.2, steps=5).fit(kept.episode(2, 1))
"""
# For each widget: the cell that makes it, the control to move (its label), the keys, and what the picture then says.
CELLS = {
    "prompt_playground": ("widgets.prompt_playground(bank)", "Class names", [", spaceship", Keys.ENTER], "test picture 0"),
    "episode_viewer": ("widgets.episode_viewer()", "Shots per class", [Keys.ARROW_RIGHT], "5 shots per class"),
    "alpha_slider": ("widgets.alpha_slider(episode)", "Residual ratio", [Keys.ARROW_RIGHT], "α = 0.3: train"),
    "training_curve_explorer": ("widgets.training_curve_explorer(episode)", "Residual blend", [Keys.SPACE], "no residual"),
    "ablation_explorer": ("widgets.ablation_explorer([bank])", "both", [Keys.SPACE], "both, D/4, α = 0.2"),
    "method_explorer": ("widgets.method_explorer(table)", "clip-adapter(alpha", [Keys.SPACE], "clip-adapter(alpha="),
    "manifold_explorer": ("widgets.manifold_explorer(panels, labels, ['cat', 'dog', 'owl'], 'pocket')", "30", [Keys.SPACE],
                          "perplexity 30, seed 0"),
    "rejection_explorer": ("widgets.rejection_explorer(strangers)", "Threshold", [Keys.ARROW_RIGHT], "None of these"),
    "sets_explorer": ("widgets.sets_explorer(fitted, held_out, episode.test)", "Promised", [Keys.ARROW_LEFT],
                      "promised 85 %")}
QUESTION = "from clip_adapter_lite.questions import ask\nask('03/numbers')"
STATIC = "plots.alpha_history({0.2: (0.9, 0.8)}, 0.75, 'pocket')"


def write_notebook(path: Path) -> None:
    sources = [SETUP, STATIC, *(cell for cell, *_ in CELLS.values()), QUESTION]
    cells = [{"cell_type": "code", "id": f"cell-{i}", "execution_count": None, "metadata": {}, "outputs": [],
              "source": source} for i, source in enumerate(sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a JupyterLab of our own, with nothing of the user's: settings, workspaces and runtime are new."""
    home = tmp_path_factory.mktemp("lab")
    write_notebook(home / "widgets.ipynb")
    for name, values in SETTINGS.items():
        place = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values), encoding="utf-8")
    folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
               "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ServerApp.ip=127.0.0.1",
               "--ServerApp.token=widgets", f"--ServerApp.root_dir={home}", "--LabApp.expose_app_in_browser=True",
               "--LabApp.news_url=None"]
    process = subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, text=True)
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                break
        else:
            pytest.fail("JupyterLab did not start: " + "".join(said[-20:]))
        threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()  # a full pipe would stop it
        yield found[0]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    """Chromium with the notebook open and all its cells run."""
    driver = headless(tmp_path_factory.mktemp("profile"))
    try:
        driver.set_script_timeout(PATIENCE)
        driver.get(f"{server}/lab/tree/widgets.ipynb?token=widgets&reset")
        wait(driver, lambda _: driver.execute_script(
            "const panel = window.jupyterapp?.shell.currentWidget;"
            "return panel?.sessionContext?.session?.kernel?.status === 'idle'"))
        driver.execute_async_script("window.jupyterapp.commands.execute('notebook:run-all-cells').then(arguments[0])")
        wait(driver, lambda _: len(driver.find_elements(By.CSS_SELECTOR, "img[alt]")) >= len(CELLS))
        yield driver
    finally:
        driver.quit()


def wait(driver, condition, seconds: float = PATIENCE):
    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(condition)


def cell(browser, number: int):
    return browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell")[number]


def shown(browser, cell) -> dict:
    """The picture of the cell, in one question: it may be replaced between two."""
    return browser.execute_script("const image = arguments[0].querySelector('img[alt]');"
                                  "return {src: image.src, alt: image.alt, width: image.clientWidth}", cell)


def control(cell, label: str):
    """What the keyboard moves in the control with that label: a button, a text box, a check box or a slider's handle."""
    for button in cell.find_elements(By.CSS_SELECTOR, ".widget-toggle-button"):
        if button.text == label:
            return button
    (box,) = [box for box in cell.find_elements(By.CSS_SELECTOR, ".widget-inline-hbox, .widget-checkbox")
              if label in box.text]
    return box.find_element(By.CSS_SELECTOR, ".noUi-handle, input")


@pytest.mark.parametrize("name", CELLS)
def test_the_keyboard_moves_the_control_and_the_figure_follows(browser, name):
    _, label, keys, says = CELLS[name]
    place = cell(browser, 2 + list(CELLS).index(name))
    before = shown(browser, place)
    moved = control(place, label)
    moved.send_keys(*keys)
    assert browser.switch_to.active_element == moved
    wait(browser, lambda _: shown(browser, place)["src"] != before["src"])
    now = shown(browser, place)
    assert says in now["alt"] and ("features: pocket CLIP" in now["alt"] or name == "episode_viewer")
    assert now["width"] > 300  # laid out, not only there
    # Its own ground, in any theme: the colour that the browser paints into the picture's corner.
    assert browser.execute_async_script("""
        const [source, done] = arguments, picture = new Image();
        picture.onload = () => {
            const paper = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
            paper.drawImage(picture, 0, 0);
            done([...paper.getImageData(2, 2, 1, 1).data]);
        };
        picture.onerror = () => done("not a picture");
        picture.src = source;""", now["src"]) == [255, 255, 255, 255]


def test_what_cannot_be_is_a_sentence_in_the_widget_and_never_a_traceback(browser):
    place = cell(browser, 2)
    typed = control(place, "Class names")
    typed.clear()
    typed.send_keys(Keys.ENTER)
    wait(browser, lambda _: place.find_elements(By.CSS_SELECTOR, "[role=alert]"))
    assert "There are 0 class names but pacs-photo has 7 classes" in place.find_element(By.CSS_SELECTOR, "[role=alert]").text
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-mime-type*=stderr], [data-mime-type*=error]")


def test_a_figure_as_the_last_expression_shows_itself(browser):
    (image,) = cell(browser, 1).find_elements(By.CSS_SELECTOR, ".jp-RenderedImage img")
    assert image.get_attribute("src").startswith("data:image/png")


def test_a_number_typed_into_a_quick_question_is_judged_and_moves_no_cell(browser):
    """JupyterLab's own keys, a digit for a heading among them, stay out of it."""
    place = cell(browser, 2 + len(CELLS))
    box = place.find_element(By.CSS_SELECTOR, ".quick-question input")
    reasons = lambda: [one.get_attribute("class") for one in place.find_elements(By.CSS_SELECTOR, ".right, .wrong")
                       if one.is_displayed()]
    assert reasons() == []
    box.send_keys("13", Keys.TAB)
    wait(browser, lambda _: reasons() == ["wrong"])
    box.send_keys("1072", Keys.TAB)
    wait(browser, lambda _: reasons() == ["right"])
    assert len(browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell")) == 3 + len(CELLS)
