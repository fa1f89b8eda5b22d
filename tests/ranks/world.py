"""Processes that are the ranks of a world, with gloo on the CPU; they stay for all tests of a file."""

from __future__ import annotations

import datetime
import queue
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 400  # seconds for one job: what takes longer waits for another rank that does not come


class World:
    """`size` processes. `run` calls a function in each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        self._context = mp.get_context("spawn")
        self._start()

    def _start(self) -> None:
        meeting = str(Path(self._folder.name) / str(len(list(Path(self._folder.name).iterdir()))))
        self._jobs = [self._context.Queue() for _ in range(self.size)]
        self._answers = self._context.Queue()
        self._ranks = [
            self._context.Process(target=_rank, args=(rank, self.size, meeting, jobs, self._answers), daemon=True)
            for rank, jobs in enumerate(self._jobs)
        ]
        for process in self._ranks:
            process.start()

    def run(self, job: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function of this name gives on each rank; it is called there with `args`.

        Raises AssertionError with what one raised, or where one waits for ever; the ranks are then started anew.
        """
        for jobs in self._jobs:
            jobs.put((job, args))
        found: dict[int, Any] = {}
        try:
            while len(found) < self.size:
                rank, given, failed = self._answers.get(timeout=PATIENCE)
                assert failed is None, f"rank {rank}:\n{failed}"
                found[rank] = given
        except queue.Empty:
            self._again()
            raise AssertionError(f"ranks {sorted(set(range(self.size)) - found.keys())} wait for ever") from None
        except AssertionError:
            self._again()
            raise
        return [found[rank] for rank in range(self.size)]

    def _again(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        for process in self._ranks:
            process.terminate()
            process.join()


def _rank(rank: int, size: int, meeting: str, jobs: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    waits = datetime.timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=waits)
    while True:
        job, args = jobs.get()
        torch.manual_seed(0)
        try:
            answers.put((rank, job(*args), None))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))
        torch._dynamo.reset()
