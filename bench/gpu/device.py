"""The few things that only a CUDA device has, and a twin of each for the CPU, so that a rehearsal runs the code."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend

MIB = 2**20


class Mark(Protocol):
    """A point in the device's work."""

    def record(self) -> None: ...

    def elapsed_time(self, other: Any) -> float:
        """Milliseconds from here to a later mark. Wait for the device first."""
        ...


@dataclass
class Count:
    """How often the host waited for the device."""

    value: int = 0


@dataclass
class WallMark:
    """A mark by the host's clock, for a device that works while the host waits."""

    at: float = field(default=0.0)

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: WallMark) -> float:
        return 1000 * (other.at - self.at)


class Cuda:
    """The first CUDA device."""

    kind = "cuda"
    dtype = torch.bfloat16
    engines = ("conditional", "graphs", "calls")
    best = "conditional"
    tiny = False
    attention = (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.MATH,
    )

    def __init__(self) -> None:
        torch.zeros((), device="cuda")  # the first use makes the context, which nobody's first call should pay for
        self.name = torch.cuda.get_device_name()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def mark(self) -> Mark:
        return torch.cuda.Event(enable_timing=True)

    def settle(self) -> None:
        """Gives back all memory that nothing needs."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def memory(self) -> dict[str, int]:
        return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}

    def peak(self) -> dict[str, int]:
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def refusing_syncs(self) -> Iterator[None]:
        """Any wait of the host that PyTorch knows of is an error."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def counting_syncs(self) -> Iterator[Count]:
        """Counts the waits: those that PyTorch warns of, and those asked for by name, of which it does not."""
        count = Count()

        def counted(wait: Any) -> Any:
            def waiting(*args: Any, **kwargs: Any) -> Any:
                count.value += 1
                return wait(*args, **kwargs)

            return waiting

        asked = ((torch.cuda, "synchronize"), (torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize"))
        patches = [patch.object(owner, name, counted(getattr(owner, name))) for owner, name in asked]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for each in patches:
                each.start()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield count
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for each in patches:
                    each.stop()
        count.value += sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)

    def profiled(self) -> list[torch.profiler.ProfilerActivity]:
        return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]


class Cpu:
    """The rehearsal's device: nothing on it is worth measuring."""

    kind = "cpu"
    dtype = torch.float32
    engines = ("calls",)
    best = "calls"
    tiny = True
    attention = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
    name = "CPU, a rehearsal"

    def synchronize(self) -> None:
        pass

    def mark(self) -> Mark:
        return WallMark()

    def settle(self) -> None:
        gc.collect()

    def memory(self) -> dict[str, int]:
        return {"allocated": 0, "reserved": 0}

    def peak(self) -> dict[str, int]:
        return self.memory()

    def forget_peak(self) -> None:
        pass

    @contextmanager
    def refusing_syncs(self) -> Iterator[None]:
        yield

    @contextmanager
    def counting_syncs(self) -> Iterator[Count]:
        yield Count()

    def profiled(self) -> list[torch.profiler.ProfilerActivity]:
        return [torch.profiler.ProfilerActivity.CPU]


Device = Cuda | Cpu


def open_device(rehearse: bool) -> Device:
    return Cpu() if rehearse else Cuda()
