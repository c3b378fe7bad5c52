"""Starting the process of a submission behind walls that the machine puts up: bubblewrap's namespaces, and limits.

With bubblewrap (`apt-get install bubblewrap`) a submission has its own process tree, no network, and of the files only
Python, the library and an empty folder in memory: neither the grader's files nor other submissions, nor the judge's
processes. Where that cannot make namespaces, as in most containers, and the grader is root, a submission runs as a user of
its own, who can end no other's processes and read what everybody can. Else the limits remain. `said` says which.
"""
import ctypes
import functools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRIVER = ("learner.py", "wire.py", "packing.py", "guard.py")
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
ETC = ("/etc/ld.so.cache", "/etc/fonts", "/etc/localtime", "/etc/os-release", "/etc/mime.types", "/etc/alternatives")
MOST_FILES = 512            # open at a time
MOST_BYTES = 200_000_000    # of one file
FOLDER_BYTES = 500_000_000  # of the folder in memory
USERS = 61184, 4335         # systemd's for users that are there for a while: the first, how many; no file is theirs


@functools.cache
def kind() -> str:
    """"bubblewrap"; "another user" where that is not there or may not make namespaces and the grader is root; or "".

    GRADER_WALLS=user does without the first, GRADER_WALLS=none without both.
    """
    wanted, line = os.environ.get("GRADER_WALLS"), [sys.executable, "-c", "import os, torch.version; os._exit(7)"]
    if wanted not in ("none", "user") and shutil.which("bwrap"):
        if subprocess.run([*walled([]), *line], check=False, capture_output=True).returncode == 7:
            return "bubblewrap"
    if wanted != "none" and os.getuid() == 0:  # it may be that others cannot read this Python
        with suppress(OSError, subprocess.SubprocessError):
            if subprocess.run(line, check=False, capture_output=True, cwd="/", env={"PATH": os.environ.get("PATH", "")},
                              preexec_fn=functools.partial(become, USERS[0])).returncode == 7:
                return "another user"
    return ""


def become(user: int) -> None:
    """In the new process: another user, without groups, who cannot become root again."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: nor by a program that is root's


def passable(scratch: Path, closed: Path) -> None:
    """Let another user reach the folders below `scratch` that are made for it, and nothing in `closed`."""
    if kind() == "another user":
        closed.chmod(0o700)
        for folder in (scratch.parent, scratch):
            folder.chmod(0o711)


def said() -> str:
    """One sentence for the instructor."""
    if kind() == "bubblewrap":
        return ("Submissions run behind bubblewrap: no network, no other processes, no files but Python, the library and an "
                "empty folder.")
    if kind():
        return ("Submissions run as a user of their own each, for bubblewrap is not there or cannot be used here: hostile "
                "ones could use the network and read what every user can. Scores are judged from outside all the same.")
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


def limited(memory: int, processes: int, user: int = 0) -> None:
    """In the new process, before it runs anything: no way back from these. user: whom it becomes, if not 0."""
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, MOST_BYTES), (resource.RLIMIT_NOFILE, MOST_FILES),
                       (resource.RLIMIT_DATA, memory * 1_000_000)):  # RLIMIT_AS would stop torch itself
        resource.setrlimit(what, (most, most))
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    if user:
        become(user)


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
    fonts, user = {str(work / ".config" / "matplotlib" / path.name): path for path in fonts}, 0
    if kind() == "bubblewrap":
        fonts = {there: str(here) for there, here in fonts.items()}
        line = walled([*settings["readable"], str(driver)], str(work), fonts) + line
    else:
        for there, here in fonts.items():
            Path(there).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, there)
    if kind() == "another user":
        user = USERS[0] + os.getpid() % USERS[1]  # the judge's number: no two submissions share one
        for place in (work, *work.rglob("*")):
            os.chown(place, user, user, follow_symlinks=False)
    process = subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
        preexec_fn=functools.partial(limited, memory, 300 if user else 0 if kind() or not os.getuid() else
                                     processes_now() + 300, user))
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
