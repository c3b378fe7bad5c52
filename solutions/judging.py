"""The judge: runs a submission's cells in a process of their own, and the check cells here.

In a check cell the names of the answers stand for calls to that process (`wire.py`): the inputs are drawn here, the right
values are computed here, and what comes back is plain data. So nothing that a submission does to its own process decides a
score: it has to answer. A check gives its points if it runs to its end, here.

A cell that exceeds a limit, or ends its process, is replaced by one that raises an error which says so, and the notebook
runs again in a fresh process: cells that depend on it fail, the others keep their marks.
"""
import contextlib
import copy
import io
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import torch
from nbgrader.preprocessors import NbGraderPreprocessor
from ordering import defined
from packing import Gone
from sealing import imports
from walls import started
from watching import Limits, Watcher, kill_all
from wire import Wire

from clip_adapter_lite import checks

MOST_RESTARTS = 12
KINDS = ("stream", "display_data", "execute_result", "error")


class Proxy:
    """An answer, by its name, in the process of the submission."""

    def __init__(self, wire: Wire, name: str, namespace: dict, proxies: dict):
        self.wire, self.name, self.namespace, self.proxies = wire, name, namespace, proxies

    def __call__(self, *args, **kwargs):
        """Names of other answers that the check has put something else in the place of are put so there, too."""
        others = {name: self.namespace[name] for name, proxy in self.proxies.items()
                  if self.namespace.get(name) is not proxy}
        return self.wire.call({"name": self.name}, args, kwargs, names=others)


def answers(source) -> list[str]:
    """The names that the source's solution cells define at their top."""
    found = []
    for cell in source.cells:
        about = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and about.get("solution"):
            found += sorted(defined(cell.source))
    return found


class Learner:
    """A process of the submission, and this end of its wire."""

    def __init__(self, settings: dict, folder: Path, environment: dict, limits: Limits, fonts: list[Path], notes: list):
        self.notes, self.done = notes, None
        self.process, self.socket = started(settings, folder, environment, limits.memory, fonts)
        self.wire = Wire(self.socket.makefile("rb"), self.socket.makefile("wb"), other=self._told)
        self.watcher = Watcher(self.process.pid, limits, self._ended)
        self.watcher.start()
        try:
            self._expect("start")
        except BaseException:
            self.close()
            raise

    def _expect(self, what: str) -> list:
        self.done = None
        while self.done is None:
            self.wire.serve(*self.wire.receive())
        if self.done.get("done") != what:
            raise Gone("an answer to another question")
        return self.done.get("outputs", [])

    def _told(self, message: dict) -> None:
        """A note, or the end of a cell."""
        if "note" in message:
            with suppress(ValueError, TypeError):
                cell, text = message["note"]
                if len(self.notes) < 200:
                    self.notes.append((str(cell)[:60], str(text)[:300]))
        elif "done" in message:
            self.done = message
        else:
            raise Gone("an unknown message")

    def _ended(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def run(self, source: str, name: str) -> list:
        """The outputs of a cell, as the submission's process gives them."""
        self.watcher.begin()
        try:
            self.wire.send({"do": "cell", "source": source, "name": name})
            return [plain(one) for one in self._expect("cell")[:1000]]
        finally:
            self.watcher.end()

    def check(self, source: str, name: str, names: list[str], given: dict) -> tuple[str, Exception | None]:
        """Run a check cell here; what was printed there and here, and why it did not come to its end, if it did not."""
        namespace, proxies = {**given, "__name__": "check"}, {}
        proxies |= {one: Proxy(self.wire, one, namespace, proxies) for one in names}
        namespace |= proxies
        printed, failed = io.StringIO(), None
        self.watcher.begin()
        try:
            self.wire.send({"do": "check", "name": name, "begins": True})
            torch.manual_seed(0)
            try:
                with contextlib.redirect_stdout(printed):
                    exec(compile(source, name, "exec"), namespace)  # the instructor's own text
            except Gone:
                raise
            except Exception as error:
                failed = error
            self.wire.send({"do": "check", "name": name, "begins": False})
            there = "".join(str(one.get("text", "")) for one in self._expect("check")[:100] if one.get("name") == "stdout")
            self.wire.forget()
            return there + printed.getvalue(), failed
        finally:
            self.watcher.end()

    def close(self) -> None:
        self.watcher.stop()
        self.seconds = self.watcher.used()
        kill_all(self.process.pid)
        self._ended()
        self.process.wait()
        self.socket.close()


def plain(output):
    """An output as nbformat has it, of what a submission says is one."""
    if not isinstance(output, dict) or output.get("output_type") not in KINDS:
        raise Gone("no output")
    try:
        found = nbformat.from_dict({**output, "metadata": output.get("metadata", {})} if "data" in output else output)
        cell = nbformat.v4.new_code_cell("", outputs=[found])
        nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))
    except Exception as error:
        raise Gone("no output") from error
    return found


class JudgedExecute(NbGraderPreprocessor):
    """In the place of nbgrader's Execute: it makes the outputs by which nbgrader scores. `notes`, of the class, collects
    (cell, text) for the instructor."""
    limits, notes, source, folder, environment, settings, fonts = Limits(), [], None, Path(), {}, {}, []  # by grading.py
    seconds = 0.0  # of processor time, by the submission's processes

    def preprocess(self, nb, resources):
        self.given, self.names = imports(self.source), answers(self.source)
        found: dict[int, list] = {}   # the outputs of check cells that have been judged
        faults: dict[int, str] = {}
        started_at, number = time.monotonic(), 0
        result = copy.deepcopy(nb)
        while True:
            self.place, number = 0, number + 1
            learner = None
            try:
                learner = Learner(self.settings, self.folder / f"run{number}", self.environment, self.limits, self.fonts,
                                  self.notes)
                self._run(learner, nb, result, found, faults)
                break
            except Gone:
                why = learner.watcher.reason if learner else ""
                if not why:
                    time.sleep(0.05)  # a process that ends closes its end of the wire first
                    ended = learner is None or learner.process.poll() is not None
                    why = "ended Python itself" if ended else "broke the connection to the grader"
                self.notes.append((name_of(nb.cells[self.place], self.place), why))
                late = time.monotonic() - started_at > 3 * self.limits.clock
                if learner is None or self.place in faults or self.place in found or len(faults) >= MOST_RESTARTS or late:
                    why = "was left out, since the time of the submission was used up" if late else \
                        "was left out, since Python kept ending"
                    for place, cell in enumerate(nb.cells):
                        if cell.cell_type == "code" and place >= self.place and place not in found:
                            result.cells[place].outputs = [stopped(why)]
                    break
                faults[self.place] = why
                if is_check(nb.cells[self.place]):
                    found[self.place] = result.cells[self.place].outputs = [stopped(why)]
                    if why.startswith("did not finish"):  # nor would it in the hidden test: once is enough
                        self._spare(nb, result, found, why)
            finally:
                if learner:
                    learner.close()
                    self.__class__.seconds += learner.seconds
        self._tell(result)
        return result, resources

    def _run(self, learner, nb, result, found: dict, faults: dict) -> None:
        for place, cell in enumerate(nb.cells):
            if cell.cell_type != "code":
                continue
            self.place, name = place, name_of(cell, place)
            if is_check(cell):
                if place not in found:
                    printed, failed = learner.check(cell.source, name, self.names, self.given)
                    outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []
                    found[place] = outputs + ([in_words(failed)] if failed else [])
                    if failed:
                        self._note(name, type(failed).__name__, str(failed))
                result.cells[place].outputs = found[place]
            elif place in faults:
                result.cells[place].outputs = [stopped(faults[place])]
            else:
                outputs = learner.run(cell.source, name)
                result.cells[place].outputs = outputs
                for output in outputs:
                    if output.output_type == "error":
                        self._note(name, output.ename, output.evalue)

    def _spare(self, nb, result, found: dict, why: str) -> None:
        wanted = name_of(nb.cells[self.place], self.place).replace("-visible", "-hidden")
        for place, cell in enumerate(nb.cells):
            if is_check(cell) and name_of(cell, place) == wanted and place not in found:
                found[place] = result.cells[place].outputs = [stopped(why)]
                self.notes.append((wanted, why))

    def _note(self, name: str, kind: str, text: str) -> None:
        if kind == "SystemExit":
            self.notes.append((name, "tried to end Python (SystemExit)"))
        elif kind == "ModuleNotFoundError":  # honest work from Colab or Kaggle, mostly
            self.notes.append((name, f"stopped: {text[:80]}"))
        elif kind == "MemoryError" or "allocate memory" in text:
            self.notes.append((name, "ran out of memory"))

    def _tell(self, result) -> None:
        """An answer that passes what the learner can run, and nothing else, may only repeat values."""
        passed = {name_of(cell, place): not any(one.output_type == "error" for one in cell.outputs)
                  for place, cell in enumerate(result.cells) if is_check(cell)}
        for name in passed:
            answer = name.removesuffix("-visible")
            if name != answer and passed[name] and not passed.get(f"{answer}-hidden", True):
                self.notes.append((answer, "gave what the visible check wants and failed the hidden test; look whether it "
                                           "only repeats those values"))


def is_check(cell) -> bool:
    about = cell.metadata.get("nbgrader", {})
    return cell.cell_type == "code" and bool(about.get("grade"))


def name_of(cell, number: int) -> str:
    """What a note calls a cell: its grade_id, or its place in the submission."""
    return cell.metadata.get("nbgrader", {}).get("grade_id") or f"number {number + 1}"


def stopped(why: str):
    return in_words(RuntimeError(f"This cell {why}, so it was not run again."))


def in_words(error: Exception):
    name, text = type(error).__name__, str(error)[:2000]
    return nbformat.v4.new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])


def undisturbed(seed: int) -> None:
    """What the judge needs once: the hidden inputs' seed, one thread, and that nobody reads its memory."""
    checks.SECRET = seed
    torch.set_num_threads(1)
    with suppress(Exception):
        import ctypes
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    os.environ.setdefault("OMP_NUM_THREADS", "1")
