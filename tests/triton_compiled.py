"""What the Triton kernels become for Hopper; no GPU is needed to compile. Run by `test_kernels.py`.

The interpreter takes some things that the compiler refuses, and knows nothing of how memory is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from dicache_compile.kernels import combine_triton, statistics_triton

from .kernel_inputs import STORED, Case, Numbers, State, case

SHAPE = (1, 4, 3072)


class Hopper:
    """As much of a driver as compiling needs."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


KERNELS = (statistics_triton._statistics_kernel, statistics_triton._add_kernel, combine_triton._combine_kernel)


def compiled(kernel: Any, launch: Callable[..., object], *arguments: object) -> str:
    """The PTX of a kernel that `launch` launches; nothing is launched in fact."""
    driver.set_active(Hopper())
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for other in KERNELS:

            def only_compile(*given: Any, other: Any = other, run: Any = other.run, **options: Any) -> None:
                ptx = run(*given, **{**options, "warmup": True}).asm["ptx"]
                if other is kernel:
                    found.append(ptx)

            patch.setattr(other, "run", only_compile)
        launch(*arguments)
    return found[0]


def accesses(ptx: str, kind: str) -> list[int]:
    """The bytes of each load ("ld") or store ("st") of global memory, in order."""
    parts = re.findall(rf"\b{kind}\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfu](\d+)\b", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in parts]


def statistics(call: Case) -> None:
    statistics_triton.statistics(*call.arguments(), multiprocessors=132)  # type: ignore[arg-type]


def combine(base: torch.Tensor, state: list[State], weights: torch.Tensor) -> None:
    residuals, scales = [stored for stored, _ in state], [scale for _, scale in state if scale is not None]
    combine_triton.combine(base, residuals, scales, weights, base.dtype, multiprocessors=132)


def test_statistics_read_16_bytes_at_a_time_and_one_place_of_the_ring() -> None:
    call = case(Numbers(0, True), SHAPE, torch.bfloat16, torch.bfloat16, x_prev=False)
    ptx = compiled(statistics_triton._statistics_kernel, statistics, call)
    written = [size for size in accesses(ptx, "st") if size > 4]  # the others are the sums
    assert set(written) == {16}
    # The count of anchors; then h, x, h_prev and one place of the ring for each 16 bytes of h_prev that are written.
    assert sorted(accesses(ptx, "ld")) == [8] + 4 * len(written) * [16]


def test_combine_reads_16_bytes_at_a_time() -> None:
    numbers = Numbers(0, True)
    base, state = numbers.stream(SHAPE, torch.bfloat16), [numbers.state(SHAPE, torch.bfloat16) for _ in range(2)]
    ptx = compiled(combine_triton._combine_kernel, combine, base, state, torch.ones(2))
    written = accesses(ptx, "st")
    assert set(written) == {16}
    assert sorted(accesses(ptx, "ld")) == [4, 4] + 3 * len(written) * [16]


@pytest.mark.parametrize("stored", STORED[1:], ids=str)
def test_every_kind_of_state_compiles(stored: torch.dtype) -> None:
    shape, numbers = (2, 3, 40), Numbers(0, True)
    call = case(numbers, shape, torch.float16, stored, ("sliced", "transposed"))
    assert accesses(compiled(statistics_triton._statistics_kernel, statistics, call), "st")
    state = [numbers.state(shape, stored) for _ in range(3)]
    assert accesses(compiled(combine_triton._combine_kernel, combine, call.h, state, torch.ones(3, 40)), "st")
