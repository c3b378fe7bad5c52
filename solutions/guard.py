"""Runs first in the process of a submission: puts back what a cell rebinds, passes over lines that start programs, refuses
files and networks outside the submission's folder, and tells the instructor of each of these.

This is care, not isolation, and no score depends on it: it runs beside the learner's code, which can undo it. The walls
are `walls.py`'s, the scores `judging.py`'s; solutions/README.md says what each is good for.
"""
import builtins
import os
import sys

WRITES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.link": 2, "os.symlink": 2,
          "os.chmod": 1, "os.chown": 1, "os.utime": 0}  # audit event: how many of its first arguments are paths written to
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
LIBRARIES = ("fc-list", "uname", "lscpu", "ldconfig")  # libraries look for these and do without: no word about them
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto")
READABLE = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev", "/etc/os-release", "/etc/mime.types", "/etc/fonts",
            "/etc/localtime", "/etc/apache2/mime.types", "/etc/ld.so.cache")
IPYTHONS = ("input", "getpass", "get_ipython", "display", "open", "exit", "quit", "copyright", "credits", "license", "help")

def start(shell, notes, settings: dict):
    """Set everything up for IPython's shell; returns a function that puts back what a cell rebound."""
    import clip_adapter_lite
    library = os.path.dirname(clip_adapter_lite.__file__)  # maybe another checkout's; quoted in errors
    put_back = watch_names(notes)
    pass_over_lines(shell, notes)
    refuse_files(notes, settings["work"], [*settings["readable"], library, os.path.dirname(__file__), *READABLE, sys.prefix,
                                           sys.base_prefix, sys.exec_prefix])
    return put_back


# lines that are no Python -------------------------------------------------------------------------

def pass_over_lines(shell, notes) -> None:
    """Start nothing for a shell line (`!pip install`, `%pip`, `files = !ls`), and go on below a line
    magic that fails. Where a cell needs what such a line gives, it fails by itself.
    """
    from IPython.utils.text import SList
    run = shell.run_line_magic

    def pass_over(command: str, *_, **__):
        text = str(command).strip()[:60]
        notes(f"has a line that starts a program, which was passed over: {text}")
        print(f"The grader starts no programs and passed over: {command}")
        return SList()

    def run_line_magic(name: str, line: str, _stack_depth: int = 1):
        try:
            return run(name, line, _stack_depth + 1)
        except Exception as error:  # not there, or without what it needs, such as a widget
            print(f"The grader passed over %{name}: {error}")

    shell.system = shell.system_raw = shell.system_piped = shell.getoutput = pass_over
    shell.run_line_magic = run_line_magic


# names -----------------------------------------------------------------------------------------------------------------

def watch_names(notes):
    """A function that puts back what was rebound since in builtins, numpy and torch, so that it costs the other exercises
    nothing.
    """
    import math

    import numpy
    import torch

    from clip_adapter_lite import checks as visible
    watched = {"builtins": builtins, "math": math, "numpy": numpy, "numpy.linalg": numpy.linalg, "torch": torch,
               "torch.nn.functional": torch.nn.functional, "torch.linalg": torch.linalg, "torch.Tensor": torch.Tensor,
               "clip_adapter_lite.checks": visible}
    kept = {name: {key: value for key, value in vars(place).items() if callable(value) and not key.startswith("__")}
            for name, place in watched.items()}
    for name in IPYTHONS:
        kept["builtins"].pop(name, None)
    kept["torch"].pop("manual_seed")  # torch itself wraps it when the first optimiser is made
    inherited = {key for base in torch.Tensor.__mro__[1:] for key in vars(base)} - set(vars(torch.Tensor))
    setting, deleting = setattr, delattr

    def put_back() -> None:
        for name, place in watched.items():
            for key, value in kept[name].items():
                if vars(place).get(key) is not value:
                    setting(place, key, value)
                    notes(f"rebound {name}.{key}, which was put back")
            if name in sys.modules and sys.modules[name] is not place and name != "torch.Tensor":
                sys.modules[name] = place
                notes(f"replaced the module {name}, which was put back")
        for key in inherited & set(vars(torch.Tensor)):
            deleting(torch.Tensor, key)
            notes(f"rebound torch.Tensor.{key}, which was put back")

    return put_back


# files, programs, networks ---------------------------------------------------------------------------------------------

def refuse_files(notes, work: str, readable: list[str]) -> None:
    """Refuse, from now on, to write outside `work` and to read outside it and `readable`, programs and networks."""
    own, real, join = os.path.realpath(work), os.path.realpath, os.path.join
    allowed = tuple({join(real(path), "") for path in [work, *readable]} | {join(path, "") for path in readable})
    writable = (join(own, ""), "/dev/null/", "/dev/shm/")

    def outside(path, folders) -> str:
        if isinstance(path, int) or path is None:
            return ""
        place = real(os.fsdecode(path))
        return "" if join(place, "").startswith(folders) else place

    def refuse(note: str) -> None:
        notes(note)
        raise PermissionError(f"The grader stopped this: the submission {note}.")

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else \
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if place := outside(path, writable if writes else allowed):
                refuse(f"tried to {'write' if writes else 'read'} {place}, outside its folder")
        elif event in WRITES:
            for path in arguments[:WRITES[event]]:
                if place := outside(path, writable):
                    refuse(f"tried to write {place}, outside its folder")
        elif event in PROGRAMS:
            program = arguments[0] if event != "subprocess.Popen" else arguments[1]
            if isinstance(program, list | tuple) and program and str(program[0]) in LIBRARIES:
                raise PermissionError(f"The grader lets nobody start {program[0]}.")
            refuse(f"tried to start another program ({str(program)[:60]})")
        elif event in NETWORK:
            refuse("tried to use a network")

    sys.addaudithook(hook)
