"""Starts the stages as processes, keeps what they print in one file, and ends those that take too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG = "log.txt"
Process = subprocess.Popen[bytes]

# For processes that run side by side: Inductor gives each as many workers of its own as there are cores.
FEW_WORKERS = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}


class Processes:
    """The processes of one command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Process] = []

    def start(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Starts `python -m module`, with its output in the common log."""
        command = [sys.executable, "-u", "-m", module, *arguments]
        with (self._folder / LOG).open("ab") as log:
            log.write(f"\n{time.strftime('%X')} {' '.join(command[2:])}\n".encode())
            log.flush()
            # A session of its own, so that Inductor's workers end with it.
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def wait(self, process: Process, until: float) -> int | None:
        """The exit status; None where the process had to be ended."""
        try:
            return process.wait(max(0.1, until - time.time()))
        except subprocess.TimeoutExpired:
            self.end(process)
            return None

    def end(self, process: Process) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def end_all(self) -> None:
        for process in self._running:
            self.end(process)


class Queue:
    """Processes of which only so many run at a time."""

    def __init__(self, processes: Processes, jobs: Sequence[Sequence[str]], at_a_time: int) -> None:
        """Each job is a module and its arguments."""
        self._processes, self._waiting, self._limit = processes, list(jobs), at_a_time
        self._running: list[Process] = []

    def go_on(self) -> bool:
        """Starts what there is room for; whether any is left."""
        self._running = [process for process in self._running if process.poll() is None]
        while self._waiting and len(self._running) < self._limit:
            self._running.append(self._processes.start(*self._waiting.pop(0), environment=FEW_WORKERS))
        return bool(self._waiting or self._running)

    def finish(self, until: float) -> None:
        """Lets them run until then, and ends the rest."""
        while self.go_on() and time.time() < until:
            time.sleep(0.2)
        self._waiting.clear()
        for process in self._running:
            self._processes.end(process)
