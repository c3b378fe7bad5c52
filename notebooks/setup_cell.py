# @title Set-up: on Colab it installs what is missing and may be run twice; elsewhere it only looks
import subprocess
import sys
from importlib import invalidate_caches, metadata, util
from pathlib import Path

REPOSITORY = ""  # filled in from pyproject.toml


def missing(requirements, seen):
    """Those of the requirements, and of what they require in turn, that are not installed."""
    from packaging.requirements import Requirement
    for wanted in map(Requirement, requirements):
        if wanted.name not in seen and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            seen.add(wanted.name)
            try:
                yield from missing(metadata.requires(wanted.name) or [], seen)
            except metadata.PackageNotFoundError:
                yield f"{wanted.name}{wanted.specifier}"


if "google.colab" in sys.modules:
    ours = [*map(str, Path.cwd().glob("clip_adapter_lite-*.whl")), *([f"git+{REPOSITORY}"] if REPOSITORY else [])]
    while wanted := list(missing(["clip-adapter-lite"], {"torch", "numpy"})):  # Colab's own torch and numpy stay
        if wanted == ["clip-adapter-lite"] and not ours:
            raise FileNotFoundError("There is no address yet to install clip-adapter-lite from: make a wheel with "
                                    "`python -m build --wheel`, upload it to Colab's Files, and run this cell again.")
        wanted = ours[:1] if wanted == ["clip-adapter-lite"] else wanted
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        invalidate_caches()
elif not util.find_spec("clip_adapter_lite"):
    raise ModuleNotFoundError("clip_adapter_lite is not installed where this notebook runs: open it with `make lab`, or run "
                              "`pip install -e .` in the repository's folder and restart the kernel.")
