"""What Inductor makes of the pieces for a GPU compiles; no GPU is needed for that. Run by `test_inductor.py`.

Inductor writes Triton code for a CPU too, if it is told to, by the same rules as for CUDA. A piece that cannot be
compiled there would leave the model uncached, and nothing on a CPU would tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from torch._inductor import config as inductor
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from dicache_compile import dicache_backend
from tests import models

torch.set_num_threads(1)


class Hopper:
    """As much of a driver as compiling needs."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class CompiledError(Exception):
    """Raised in place of the first run."""


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The Triton code of every kernel that Inductor writes, by name; none is run."""
    found: dict[str, str] = {}

    def keep(self: AsyncCompile, name: str, source: str, *_: Any, **__: Any) -> None:
        found[name] = source

    monkeypatch.setattr(AsyncCompile, "triton", keep)
    driver.set_active(Hopper())
    with inductor.patch(cpu_backend="triton", fx_graph_cache=False, compile_threads=1):
        yield found


def compile_pieces(model: torch.nn.Module, args: tuple[Any, ...], **options: Any) -> None:
    def backend(gm: torch.fx.GraphModule, examples: list[Any]) -> Any:
        dicache_backend(gm, examples, options={"strict": True, **options})
        raise CompiledError

    with torch.no_grad(), pytest.raises(Exception, match="CompiledError"):
        torch.compile(model, backend=backend, fullgraph=True)(*args)


def ptx(source: str) -> str:
    """What a kernel becomes on Hopper."""
    module = PyCodeCache.load(source)
    (kernel,) = (value for value in vars(module).values() if hasattr(value, "fn") and hasattr(value, "triton_meta"))
    meta, config = kernel.triton_meta, kernel.configs[0]
    constants = {**meta["constants"], **config.kwargs}
    signature = {name: "constexpr" if name in constants else kind for name, kind in meta["signature"].items()}
    compiled = triton.compile(ASTSource(kernel.fn, signature, constants), target=GPUTarget("cuda", 90, 32))
    return str(compiled.asm["ptx"])


COMMON: dict[str, Any] = {}
OTHERS: list[dict[str, Any]] = [
    {"error": "estimate", "order": 2, "joint": True},
    {"probe_depth": 0, "feedback": 1.0, "threshold": float("inf")},
    {"state_dtype": torch.float8_e4m3fn},
]


@pytest.mark.parametrize(
    "options", [COMMON, *(pytest.param(options, marks=pytest.mark.exhaustive) for options in OTHERS)], ids=str
)
def test_each_kernel_of_the_pieces_compiles_for_hopper(sources: dict[str, str], options: dict[str, Any]) -> None:
    # A prompt that is reduced in two stages, so that a place in it is a sum of two indices.
    model = models.make(models.Mixed, torch.bfloat16, channels=64)
    latents, timestep, _ = models.inputs(model, 0, 10)
    compile_pieces(model, (latents, timestep, torch.zeros(2, 1024, 64, dtype=torch.bfloat16)), **options)
    assert len(sources) > 20
    sums = [source for source in sources.values() if "2654435761" in source]
    assert sums
    for name, source in sources.items():
        assert re.search(r"\.visible \.entry", ptx(source)), name
