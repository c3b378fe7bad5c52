"""Running a submission's cells within limits that are enforced from outside its kernel.

A cell that exceeds a limit, or ends its kernel, is replaced by one that raises an error which says so, and the notebook runs
again from a fresh kernel: cells that depend on it fail, the others keep their marks.
"""
import copy
import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil
from nbgrader.preprocessors import Execute
from traitlets import Bool, Integer

MOST_PROCESSES, MOST_RESTARTS, INTERVAL = 40, 12, 0.2


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""
    seconds: int = 30            # of processor time, by one cell
    clock: int = 120             # seconds by the clock, by one cell
    memory: int = 3000           # MB, by all its processes together
    characters: int = 200_000    # printed by one cell


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants whose own parents end, so that none escapes `kill_all`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def kill_all(pid: int, *, itself: bool = True) -> None:
    """Kill a process, all its descendants and their groups, until none is left."""
    for _ in range(20):  # a fork that races with us is met in the next round
        try:
            process = psutil.Process(pid)
            found = [*process.children(recursive=True), *([process] if itself else [])]
        except psutil.NoSuchProcess:
            return
        found = [process for process in found if _alive(process)]
        if not found:
            return
        for process in found:
            with suppress(OSError):
                if os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, signal.SIGKILL)
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _alive(process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Watcher(threading.Thread):
    """Kills the kernel when the cell that runs exceeds a limit, and keeps the reason."""

    def __init__(self, limits: Limits):
        super().__init__(daemon=True)
        self.limits, self.reason, self.peak = limits, "", 0
        self._kernel, self._since, self._used, self._done = None, 0.0, 0.0, threading.Event()
        self._lock = threading.Lock()

    def begin(self, pid: int) -> None:
        with self._lock:
            self._kernel = psutil.Process(pid)
            self._since, self._used = time.monotonic(), self._processor_time(self._processes())

    def end(self) -> None:
        with self._lock:
            self._kernel = None

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            with self._lock:
                if self._kernel is not None and (reason := self._exceeded()):
                    self.reason = reason
                    kill_all(self._kernel.pid)
                    self._kernel = None

    def _exceeded(self) -> str:
        processes, limits = self._processes(), self.limits
        resident = 0
        for process in processes:
            with suppress(psutil.Error):
                resident += process.memory_info().rss
        self.peak = max(self.peak, resident)
        if resident > limits.memory * 1e6:
            return f"used more than {limits.memory} MB of memory"
        if len(processes) > MOST_PROCESSES:
            return f"started more than {MOST_PROCESSES} processes"
        if self._processor_time(processes) - self._used > limits.seconds:
            return f"did not finish within {limits.seconds} s of processor time"
        if time.monotonic() - self._since > limits.clock:
            return f"did not finish within {limits.clock} s"
        return ""

    def _processes(self) -> list:
        with suppress(psutil.Error):
            return [self._kernel, *self._kernel.children(recursive=True)]
        return []

    @staticmethod
    def _processor_time(processes) -> float:
        used = 0.0
        for process in processes:
            with suppress(psutil.Error):
                used += sum(process.cpu_times()[:2])
        return used


def name_of(cell, number: int) -> str:
    """What a note calls a cell: its grade_id, or its place in the submission."""
    return cell.metadata.get("nbgrader", {}).get("grade_id") or f"number {number + 1}"


class CarefulExecute(Execute):
    """nbgrader's Execute within `limits`; `notes`, of the class, collects what the instructor should know."""
    limits, notes, folder = Limits(), [], ""  # set by grading.py: one process grades one submission
    timeout = Integer(None, allow_none=True)  # the watcher's business
    startup_timeout = Integer(300)
    iopub_timeout = Integer(60)
    store_widget_state = Bool(False)

    def preprocess(self, nb, resources):
        resources["metadata"]["path"] = self.folder  # not where the notebook with the hidden tests lies
        faults: dict[int, str] = {}
        while True:
            trial = copy.deepcopy(nb)
            for place, why in faults.items():
                trial.cells[place].source = f"raise RuntimeError({f'This cell {why}, so it was not run again.'!r})"
            self.place, self.printed, self.watcher = 0, 0, Watcher(self.limits)
            self.watcher.start()
            try:
                trial, resources = super().preprocess(trial, resources)
                break
            except Exception as error:  # a dead kernel, or whatever a submission made of the connection to it
                why = self.watcher.reason or {"DeadKernelError": "ended Python itself"}.get(
                    type(error).__name__, f"broke the connection to the kernel ({type(error).__name__})")
                self.notes.append((name_of(nb.cells[self.place], self.place), why))
                if self.place in faults or len(faults) >= MOST_RESTARTS:
                    why = "was left out, since the kernel kept ending"
                    faults |= {place: why for place in range(self.place, len(nb.cells))
                               if nb.cells[place].cell_type == "code" and place not in faults}
                    if len(faults) > 2 * len(nb.cells):
                        raise
                else:
                    faults[self.place] = why
            finally:
                self.watcher.stop()
                kill_all(os.getpid(), itself=False)
        for place, (before, after) in enumerate(zip(nb.cells, trial.cells)):
            after.source = before.source
            if after.cell_type == "code":
                self._settle(after, place)
        return trial, resources

    def preprocess_cell(self, cell, resources, index):
        self.place, self.printed = index, 0
        self.watcher.begin(self.km.provisioner.pid)
        try:
            return super().preprocess_cell(cell, resources, index)
        finally:
            self.watcher.end()

    def process_message(self, msg, cell, cell_index):
        """Drop what a cell shows after the limit; errors stay, since they decide scores."""
        if msg["msg_type"] in ("stream", "display_data", "execute_result", "update_display_data"):
            self.printed += len(str(msg["content"]))
            if self.printed > 20 * self.limits.characters:  # room for figures; the guard cuts text before
                self.notes.append((name_of(cell, cell_index), "showed more than the limit; the rest was cut"))
                return None
        return super().process_message(msg, cell, cell_index)

    def _settle(self, cell, place: int) -> None:
        """Note exits and want of memory; let neither a warning nor a shown value decide the score of a check cell."""
        kept = []
        for output in cell.outputs:
            if output.output_type == "error":
                output.evalue = output.evalue[:2000]
                output.traceback = [line[:20_000] for line in output.traceback]
                if output.ename == "SystemExit":
                    self.notes.append((name_of(cell, place), "tried to end Python (SystemExit)"))
                elif output.ename == "ModuleNotFoundError":  # honest work from Colab or Kaggle, mostly
                    self.notes.append((name_of(cell, place), f"stopped: {output.evalue[:80]}"))
                elif output.ename == "MemoryError" or "allocate memory" in output.evalue:
                    self.notes.append((name_of(cell, place), "ran out of memory"))
            if cell.metadata.get("nbgrader", {}).get("grade"):
                if output.output_type == "execute_result":
                    continue  # nbgrader would read a number in it as the score
                if output.output_type == "stream":
                    output.name = "stdout"  # nbgrader takes any warning for a failure
            kept.append(output)
        cell.outputs = kept
