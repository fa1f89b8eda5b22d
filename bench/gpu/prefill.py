"""Compiles the long graphs of one case beforehand, each in a process of its own, so that the measuring one finds them.

    python -m bench.gpu.prefill flux1024 torch.compile --out FOLDER

Inductor keeps what it compiles on disk and finds it again for an equal graph with equal shapes. Compiling a model of
57 blocks keeps one core busy for about a minute; three of them side by side take as long as one. Nothing runs here: the
kernels' own tuning, which is done when they first run, is left to the measuring process and its quiet device. And so
the weights need not differ: all of them lie in the same piece of memory, and many such processes fit on one device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dicache_compile import dicache_backend

from .cases import Case, Run, case_named
from .device import Device, open_device
from .quiet import building
from .rows import Writer
from .systems import GRAPHED, OURS, our_options


class CompiledError(Exception):
    """Raised in place of the first run: all there is to do is done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("system")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    device = open_device(arguments.rehearse)
    case = case_named(arguments.case, device.tiny)
    with building(arguments.out):
        seconds = compile_only(case, arguments.system, device)
    writer = Writer(arguments.out, device.name)
    detail = "nothing in the compiler's cache but what other processes put there meanwhile"
    writer.row(case.name, arguments.system, "compilation beside others", seconds, "s", detail=detail)


def compile_only(case: Case, system: str, device: Device) -> float:
    """Seconds from the call to the moment when the compiled graph would run."""
    model = hollow(case, device)
    compiled = torch.compile(model, backend=_stopping(_backend(system, device)), fullgraph=True)
    run = Run(case, device)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            compiled(**run.arguments(0, run.latents))
    except CompiledError:
        return time.perf_counter() - start
    raise AssertionError("the graph ran")


def hollow(case: Case, device: Device) -> nn.Module:
    """The case's model with all weights in one piece of memory: good for compiling, and for nothing else."""
    with torch.device("meta"):
        usual = torch.get_default_dtype()
        torch.set_default_dtype(device.dtype)
        try:
            model = case.family(**case.config)
        finally:
            torch.set_default_dtype(usual)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    room = max(parameter.numel() for parameter in model.parameters())
    memory = {dtype: torch.zeros(room, dtype=dtype, device=device.kind) for dtype in (device.dtype, torch.float32)}
    for module_name, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            dtype = torch.float32 if kept & set(f"{module_name}.{name}".split(".")) else device.dtype
            view = memory[dtype][: parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(view, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device.kind))
    return model.eval()


def _backend(system: str, device: Device) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    if system in OURS:
        return lambda gm, examples: dicache_backend(gm, examples, options=our_options(system))
    settings = torch._inductor.list_mode_options("reduce-overhead") if system == GRAPHED else {}
    return lambda gm, examples: compile_fx(gm, examples, config_patches=dict(settings))


def _stopping(backend: Callable[..., Any]) -> Callable[..., Any]:
    def compiling(gm: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        backend(gm, examples)

        def stop(*_: Any) -> Any:
            raise CompiledError

        return stop

    return compiling


if __name__ == "__main__":
    main()
