"""The limits of a submission's process, enforced from outside it, and the end of all that it started."""
import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

MOST_PROCESSES, INTERVAL = 40, 0.2


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


def _runs(pid: int) -> bool:
    with suppress(psutil.Error):
        return _alive(psutil.Process(pid))
    return False


def _alive(process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Watcher(threading.Thread):
    """Kills a process when what it does exceeds a limit, and keeps the reason.

    ended: called when the process is gone: what it had started may hold its end of the wire open.
    """

    def __init__(self, pid: int, limits: Limits, ended):
        super().__init__(daemon=True)
        self.limits, self.reason, self.peak, self.ended = limits, "", 0, ended
        self.pid, self._kernel, self._since, self._used = pid, None, 0.0, 0.0
        self._done, self._lock = threading.Event(), threading.Lock()

    def begin(self) -> None:
        with self._lock, suppress(psutil.Error):
            self._kernel = psutil.Process(self.pid)
            self._since, self._used = time.monotonic(), self._processor_time(self._processes())

    def end(self) -> None:
        with self._lock:
            self._kernel = None

    def used(self) -> float:
        """Seconds of processor time of the processes that still run."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return self._processor_time([process, *process.children(recursive=True)])
        return 0.0

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            with self._lock:
                if self._kernel is not None and (reason := self._exceeded()):
                    self.reason = reason
                    kill_all(self.pid)
                    self._kernel = None
                    self.ended()
                elif not _runs(self.pid):
                    self.ended()
                    return

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
