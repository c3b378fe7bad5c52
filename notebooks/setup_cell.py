# @title Set-up: on Colab it installs what is missing and may be run twice; elsewhere it only looks
import subprocess
import sys
from importlib import invalidate_caches, metadata, util
from pathlib import Path

REPOSITORY = ""  # filled in from pyproject.toml
DRIVE = Path("/content/drive")


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


def wheels():
    """Our wheel where `make colab`'s folder was uploaded: to Colab's Files, or to My Drive; the newest last."""
    found = [*Path.cwd().glob("clip_adapter_lite-*.whl"), *Path.cwd().glob("*/clip_adapter_lite-*.whl")]
    if not found:
        from google.colab import drive
        drive.mount(str(DRIVE))  # asks for leave, once
        found = [wheel for depth in ("", "*/", "*/*/") for wheel in DRIVE.glob(f"MyDrive/{depth}clip_adapter_lite-*.whl")]
    return [str(wheel) for wheel in sorted(found, key=lambda wheel: wheel.stat().st_mtime)]


if "google.colab" in sys.modules:
    while wanted := list(missing(["clip-adapter-lite"], {"torch", "numpy"})):  # Colab's own torch and numpy stay
        if wanted == ["clip-adapter-lite"]:
            wanted = [f"git+{REPOSITORY}"] if REPOSITORY else wheels()[-1:]
        if not wanted:
            raise FileNotFoundError("There is no wheel of clip-adapter-lite in Colab's Files or My Drive: run `make colab` "
                                    "in the repository, upload its folder _colab to My Drive, and run this cell again.")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        invalidate_caches()
elif not util.find_spec("clip_adapter_lite"):
    raise ModuleNotFoundError("clip_adapter_lite is not installed where this notebook runs: open it with `make lab`, or run "
                              "`pip install -e .` in the repository's folder and restart the kernel.")
