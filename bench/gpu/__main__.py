"""Checks first, then measurements, as many as fit: `python -m bench.gpu --out FOLDER`. See README.md beside this."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .cases import case_named
from .device import Cpu
from .figures import write_figures
from .processes import FEW_WORKERS, Process, Processes, Queue
from .rows import Writer, read_rows, read_samples
from .stage import CASES, CHECKS
from .systems import LONG_TO_COMPILE, ORDER
from .table import table

# The most important first, with the most seconds that each may take.
PARTS = {"checks": 170, "flux1024": 290, "flux512": 230, "wan": 260, "small": 150}
GRACE = 15  # seconds that a part may take past its time before it is ended
CHECKS_SHARE = 0.6  # of the time, after which checks that run beside cases are ended
LEAST = 60  # seconds without which a part is not begun
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


class Command:
    """One run of the parts that were asked for."""

    def __init__(
        self, folder: Path, parts: Sequence[str], seconds: float, rehearse: bool, systems: Sequence[str] = ORDER
    ) -> None:
        self.folder, self.parts, self.rehearse = folder, parts, rehearse
        self.end = time.time() + seconds
        # The CPU of a rehearsal is slow at compiling.
        self.most = {part: most * (6 if rehearse else 1) for part, most in PARTS.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(folder)
        self.common = ("--out", str(folder), *(["--rehearse"] if rehearse else []))
        self.best = Cpu.best if rehearse else "conditional"
        self.systems = systems
        self.writer = Writer(folder, Cpu.name if rehearse else torch.cuda.get_device_name())

    def run_together(self) -> None:
        """All at once: what is timed waits until all else is done, so that it takes the time of the longest part."""
        try:
            cases = {part: self._start(part, self.end) for part in self.parts if part in CASES}
            # What a case compiles first, it compiles itself. All are started at once: cases wait for them to be timed.
            first = [name for name in LONG_TO_COMPILE if name in self.systems][:1]
            self._prefill_queue([name for name in LONG_TO_COMPILE if name not in first], at_once=True).go_on()
            checks = self._start_checks() if "checks" in self.parts else {}
            until = self.end - (1 - CHECKS_SHARE) * (self.end - time.time())
            for group, process in checks.items():
                self._finish_check(group, process, until)
            for case, process in cases.items():
                self._finish(case, process, self.end)
        finally:
            self.processes.end_all()
        self._print_table()

    def run(self) -> None:
        try:
            self._compile_and_check()
            for part in self.parts:
                until = min(self.end, time.time() + self.most[part])
                if part == "checks":
                    continue
                if until - time.time() < LEAST:
                    print(f"{part}: left out, no time", flush=True)
                else:
                    self._measure(part, until)
        finally:
            self.processes.end_all()
        self._print_table()

    def _print_table(self) -> None:
        text = table(read_rows(self.folder))
        (self.folder / "table.txt").write_text(text + "\n")
        print(text)

    def _compile_and_check(self) -> None:
        """The long compilations and the checks, side by side: neither reports times that want a quiet device."""
        begun, until = time.time(), min(self.end, time.time() + self.most["checks"])
        queue = self._prefill_queue(LONG_TO_COMPILE)
        queue.go_on()
        if "checks" in self.parts:
            groups = self._start_checks()
            while any(process.poll() is None for process in groups.values()) and time.time() < until:
                queue.go_on()
                time.sleep(0.2)
            for group, process in groups.items():
                self._finish_check(group, process, until)
        queue.finish(until)
        print(f"compiled and checked in {time.time() - begun:.0f} s", flush=True)

    def _prefill_queue(self, long: Sequence[str], at_once: bool = False) -> Queue:
        """What takes long to compile, side by side; not more at a time than there are cores, or all `at_once`."""
        names = [name for name in long if not (self.rehearse and name == "conditional")]
        names += ["calls"] if self.rehearse else []
        names = [name for name in names if name in self.systems]
        cases = [part for part in self.parts if part in CASES]
        jobs = [("bench.gpu.prefill", case, name, *self.common) for case in cases for name in names]
        room = len(jobs) if at_once else len(os.sched_getaffinity(0)) - len(CHECKS)
        return Queue(self.processes, jobs, at_a_time=max(1, room))

    def _start_checks(self) -> dict[str, Process]:
        environments = dict.fromkeys(CHECKS, FEW_WORKERS) | {"expandable": FEW_WORKERS | EXPANDABLE}
        return {
            group: self.processes.start("bench.gpu.stage", group, *self.common, environment=environments[group])
            for group in CHECKS
        }

    def _finish_check(self, group: str, process: Process, until: float) -> None:
        status = self.processes.wait(process, until)
        if status != 0:
            how = "took too long" if status is None else f"ended with {status}"
            self.writer.row("checks", self.best, group, None, passed=False, detail=f"the process {how}")

    def _measure(self, case: str, until: float) -> None:
        begun = time.time()
        process = self._start(case, until)
        self._finish(case, process, until)
        print(f"{case}: {time.time() - begun:.0f} s", flush=True)

    def _start(self, case: str, until: float) -> Process:
        systems = [argument for name in self.systems for argument in ("--system", name)]
        return self.processes.start("bench.gpu.stage", case, *self.common, "--until", str(until - GRACE), *systems)

    def _finish(self, case: str, process: Process, until: float) -> None:
        status = self.processes.wait(process, until)
        if status != 0:
            how = "took too long" if status is None else f"ended with {status}"
            self.writer.row(case, self.best, "stage", None, passed=False, detail=f"the process {how}")
        # Here, so that a stage that was ended leaves the figures of the rounds that it had.
        write_figures(case_named(case, self.rehearse), read_samples(self.folder, case), self.writer, self.best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, samples, the log and the table")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="only this; may be given several times")
    parser.add_argument("--seconds", type=float, help="that all of it may take: 510, and 3600 for a rehearsal")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU, to see that the script runs")
    parser.add_argument("--system", choices=ORDER, action="append", help="only this, of the cases; likewise")
    parser.add_argument("--together", action="store_true", help="checks and cases at once; only timing is done alone")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if part in (arguments.part or PARTS)]
    seconds = arguments.seconds or (3600 if arguments.rehearse else 510)
    command = Command(arguments.out, parts, seconds, arguments.rehearse, arguments.system or ORDER)
    if arguments.together:
        command.run_together()
    else:
        command.run()


if __name__ == "__main__":
    main()
