"""`dicache env`: versions, devices, and what this machine can have."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
import torch._inductor.cpp_builder
from rich.console import Group, RenderableType
from rich.table import Table
from torch.utils._triton import has_triton

from ..engines.machine import Possible, possible_engines
from .answer import Answer, AsJson, Debug, tell

_PACKAGES = ("dicache-compile", "torch", "diffusers", "transformers", "triton", "cuda-bindings", "torchao")


@dataclass(frozen=True, slots=True)
class Device:
    """What a model can be on."""

    name: str  # as in `model.to`
    what: str
    memory_gib: float | None  # in all; None of a CPU
    compiles: str | None  # why Inductor cannot compile for it; None where it can


@dataclass(frozen=True, slots=True)
class Environment:
    """All that a report of a fault should have."""

    system: str
    python: str
    packages: dict[str, str | None]  # the version of each; None where it is not installed
    cuda: str | None  # that torch is built for
    driver: str | None  # the newest CUDA that the driver can run
    devices: tuple[Device, ...]
    engines: tuple[Possible, ...]


def env(json: AsJson = False, debug: Debug = False) -> None:
    """Show versions and devices, and which engines this machine can have, or why not."""

    def work() -> Answer:
        found = environment()
        return Answer(found, _shown(found))

    tell(work, json, debug)


def environment() -> Environment:
    """Of this process."""
    return Environment(
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: installed(name) for name in _PACKAGES},
        cuda=torch.version.cuda,
        driver=_driver(),
        devices=_devices(),
        engines=possible_engines(),
    )


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    ask: Callable[[], int] | None = getattr(torch._C, "_cuda_getDriverVersion", None)  # of builds with CUDA
    if ask is None or not torch.cuda.is_available():
        return None
    number = ask()
    return f"{number // 1000}.{number % 1000 // 10}"


def _devices() -> tuple[Device, ...]:
    cpu = Device("cpu", f"{platform.machine()}, {os.cpu_count()} cores", None, _why_no_compiler())
    return (cpu, *map(_cuda, range(torch.cuda.device_count())))


def _cuda(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    what = f"{found.name}, compute capability {found.major}.{found.minor}"
    no_triton = None if has_triton() else "Triton is not installed, or does not know this device"
    return Device(f"cuda:{index}", what, round(found.total_memory / 2**30, 1), no_triton)


def _why_no_compiler() -> str | None:
    try:
        torch._inductor.cpp_builder.get_cpp_compiler()
    except Exception as error:  # as InvalidCxxCompiler; others on other systems
        return f"no C++ compiler was found ({type(error).__name__}): install g++ or clang"
    return None


def _shown(found: Environment) -> RenderableType:
    packages = _table("package", "version")
    packages.add_row("python", f"{found.python} on {found.system}")
    for name, one in found.packages.items():
        packages.add_row(name, one or "not installed")
    packages.add_row("CUDA of torch", found.cuda or "none")
    packages.add_row("CUDA of the driver", found.driver or "none")
    devices = _table("device", "what", "memory", "Inductor")
    for device in found.devices:
        memory = "" if device.memory_gib is None else f"{device.memory_gib} GiB"
        devices.add_row(device.name, device.what, memory, device.compiles or "can compile")
    engines = _table("engine", "here")
    for engine in found.engines:
        engines.add_row(engine.name, "yes" if engine.reason is None else f"no: {engine.reason}")
    return Group(packages, "", devices, "", engines)


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[-1].overflow = "fold"
    return table
