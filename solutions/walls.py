"""Starting the process of a submission behind walls that the machine puts up: bubblewrap's namespaces, and limits.

With bubblewrap (`apt-get install bubblewrap`) a submission has its own process tree, no network, and of the files only
Python, the library and an empty folder in memory: neither the grader's files nor other submissions, nor the judge's
processes. Without it the limits remain, and `said` says so.
"""
import functools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRIVER = ("learner.py", "wire.py", "packing.py", "guard.py")
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
ETC = ("/etc/ld.so.cache", "/etc/fonts", "/etc/localtime", "/etc/os-release", "/etc/mime.types", "/etc/alternatives")
MOST_FILES = 512            # open at a time
MOST_BYTES = 200_000_000    # of one file
FOLDER_BYTES = 500_000_000  # of the folder in memory


@functools.cache
def kind() -> str:
    """"bubblewrap", or "" where it is not there or may not make namespaces. GRADER_WALLS=none turns it off."""
    if os.environ.get("GRADER_WALLS") == "none" or not shutil.which("bwrap"):
        return ""
    tried = subprocess.run([*walled([]), sys.executable, "-c", "import os; os._exit(7)"], check=False, capture_output=True)
    return "bubblewrap" if tried.returncode == 7 else ""


def said() -> str:
    """One sentence for the instructor."""
    if kind():
        return ("Submissions run behind bubblewrap: no network, no other processes, no files but Python, the library and an "
                "empty folder.")
    return ("Submissions run as you, for there is no bubblewrap here (apt-get install bubblewrap): hostile ones could read "
            "your files and end the grader. Scores are judged from outside all the same.")


def walled(readable: list[str], folder: str = "", files: dict[str, str] | None = None) -> list[str]:
    """bwrap's command line for what follows it. readable: paths. folder: empty and writable. files: {there: here}."""
    line = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "submission"]
    for path in SYSTEM:
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            line += ["--ro-bind", path, path]
    for path in ETC:
        line += ["--ro-bind-try", path, path]
    line += ["--proc", "/proc", "--dev", "/dev", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp"]
    for path in dict.fromkeys([*readable, sys.prefix, sys.base_prefix]):
        if os.path.exists(path) and not path.startswith("/usr/") and path != "/usr":
            line += ["--ro-bind", path, path]
    if folder:
        line += ["--size", str(FOLDER_BYTES), "--tmpfs", folder]
    for there, here in (files or {}).items():
        line += ["--ro-bind", here, there]
    return line


def limited(memory: int, processes: int) -> None:
    """In the new process, before it runs anything: no way back from these."""
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, MOST_BYTES), (resource.RLIMIT_NOFILE, MOST_FILES),
                       (resource.RLIMIT_DATA, memory * 1_000_000)):  # RLIMIT_AS would stop torch itself
        resource.setrlimit(what, (most, most))
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


def started(settings: dict, folder: Path, environment: dict, memory: int, fonts: list[Path] = ()):
    """Start learner.py; returns (process, socket). folder: an empty one, for the driver's files and the submission's."""
    driver, work = folder / "driver", Path(settings["work"])
    driver.mkdir(parents=True)
    work.mkdir(exist_ok=True)
    for name in DRIVER:
        shutil.copy(HERE / name, driver)
    about = driver / "settings.json"
    about.write_text(json.dumps(settings), encoding="utf-8")
    ours, theirs = socket.socketpair()
    line = [sys.executable, str(driver / "learner.py"), str(theirs.fileno()), str(about)]
    fonts = {str(work / ".config" / "matplotlib" / path.name): path for path in fonts}
    if kind():
        fonts = {there: str(here) for there, here in fonts.items()}
        line = walled([*settings["readable"], str(driver)], str(work), fonts) + line
    else:
        for there, here in fonts.items():
            Path(there).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, there)
    process = subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
        preexec_fn=functools.partial(limited, memory, 0 if kind() or not os.getuid() else processes_now() + 300))
    theirs.close()
    return process, ours


def processes_now() -> int:
    """How many threads this user has: what RLIMIT_NPROC counts."""
    import psutil
    found = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        if process.info["uids"] and process.info["uids"].real == os.getuid():
            found += process.info["num_threads"] or 1
    return found
