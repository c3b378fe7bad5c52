"""Runs first in the kernel of a submission: puts back what a cell rebinds, refuses files and networks outside the
submission's folder, cuts floods of output, and reports each of these to the instructor.

This is care, not isolation: it runs in the same process as the student's code, which can undo it if it tries hard enough.
`watching.py` holds the limits that are enforced from outside; solutions/README.md says what each is good for.

`start` is called by the kernel's start-up file, which `grading.py` writes.
"""
import ast
import builtins
import json
import os
import sys
import types

WRITES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.link": 2, "os.symlink": 2,
          "os.chmod": 1, "os.chown": 1, "os.utime": 0}  # audit event: how many of its first arguments are paths written to
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
LIBRARIES = ("fc-list", "uname", "lscpu", "ldconfig")  # libraries look for these and do without: no word about them
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto")
READABLE = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev", "/etc/os-release", "/etc/mime.types", "/etc/fonts",
            "/etc/localtime", "/etc/apache2/mime.types", "/etc/ld.so.cache")
IPYTHONS = ("input", "getpass", "get_ipython", "display", "open", "exit", "quit", "copyright", "credits", "license", "help")
PREFIX = "_grader_"  # of the names under which check cells find what the submission may have hidden


def start(*, work: str, report: str, checks: dict[str, str], cells: dict[str, str], most_characters: int,
          readable: list[str]) -> None:
    """Set everything up.

    work: the only folder to write to. report: the file for the notes, JSON lines. checks, cells: {source: id} of the check
    cells and of all cells. most_characters: of printed text a cell. readable: further folders that may be read.
    """
    from IPython import get_ipython

    import clip_adapter_lite
    library = os.path.dirname(clip_adapter_lite.__file__)  # maybe another checkout's; quoted in errors
    shell = get_ipython()
    notes = Notes(report)
    watch_names(shell, notes, checks, cells)
    limit_output(shell, notes, most_characters)
    pass_over_lines(shell, notes)
    shell.ask_exit = types.MethodType(_leave, shell)  # exit() as sys.exit(): the kernel's own way ends a later cell's run
    refuse_files(notes, work, [*readable, library, *READABLE, sys.prefix, sys.base_prefix,
                               sys.exec_prefix])


def _leave(shell):
    raise SystemExit("exit() was called")


class Notes:
    """Writes each note once, with the id of the cell that runs."""

    def __init__(self, path: str):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.cell, self.seen = "", set()

    def __call__(self, text: str) -> None:
        if (self.cell, text) not in self.seen and len(self.seen) < 30:
            self.seen.add((self.cell, text))
            os.write(self.file, (json.dumps([self.cell, text]) + "\n").encode())


# lines that are no Python -------------------------------------------------------------------------

def pass_over_lines(shell, notes: Notes) -> None:
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

def watch_names(shell, notes: Notes, checks: dict[str, str], cells: dict[str, str]) -> None:
    """Put back what a cell rebinds in builtins, numpy and torch; let check cells see these whatever globals hide them."""
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
    originals = {key: value for key, value in kept["builtins"].items() if not key.startswith("_") and key != "super"}
    originals |= {"check": visible.check, "torch": torch, "np": numpy, "numpy": numpy, "math": math}
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

    class Originals(ast.NodeTransformer):
        """In check cells, names of built-ins and of the usual modules mean these, not the submission's globals."""
        active = False

        def visit_Module(self, node):
            if not self.active:
                return node
            parts, self.own = list(ast.walk(node)), set()  # the names that the cell itself gives
            self.own |= {part.id for part in parts if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load)}
            self.own |= {part.arg for part in parts if isinstance(part, ast.arg)}
            self.own |= {part.name for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)}
            self.own |= {(part.asname or part.name).split(".")[0] for part in parts if isinstance(part, ast.alias)}
            return self.generic_visit(node)

        def visit_Name(self, node):
            if node.id in originals and node.id not in self.own:
                return ast.copy_location(ast.Name(PREFIX + node.id, node.ctx), node)
            return node

    transformer = Originals()

    def before(info) -> None:
        notes.cell = cells.get(info.raw_cell, notes.cell)
        transformer.active = info.raw_cell in checks
        if transformer.active:
            for key, value in originals.items():
                if key in shell.user_ns and shell.user_ns[key] is not value:
                    notes(f"used the real {key!r}, which a global name of the submission hid")
                shell.user_ns[PREFIX + key] = value

    def after(result) -> None:
        put_back()
        for key in [key for key in shell.user_ns if key.startswith(PREFIX)] if transformer.active else ():
            del shell.user_ns[key]

    shell.ast_transformers.append(transformer)
    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)


# output ----------------------------------------------------------------------------------------------------------------

def limit_output(shell, notes: Notes, most: int) -> None:
    """Cut what a cell prints after `most` characters."""
    from ipykernel.iostream import OutStream
    write, printed = OutStream.write, [0]

    def limited(self, text):
        if isinstance(text, str):
            room = most - printed[0]
            printed[0] += len(text)
            if room <= 0:
                return len(text)
            if len(text) > room:
                notes(f"printed more than {most // 1000} kB; the rest was cut")
                write(self, text[:room] + "\n… cut by the grader\n")
                return len(text)
        return write(self, text)

    def fresh(info) -> None:
        printed[0] = 0

    OutStream.write = limited
    shell.events.register("pre_run_cell", fresh)


# files, programs, networks ---------------------------------------------------------------------------------------------

def refuse_files(notes: Notes, work: str, readable: list[str]) -> None:
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
