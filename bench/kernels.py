"""Times the Triton operators against what Inductor makes of their eager references: `python -m bench.kernels`.

Needs a GPU; `--rehearse` runs all of it on tiny tensors under Triton's interpreter (with TRITON_INTERPRET=1). Before
anything is timed it is held against float64, and run twice for the same bits. Prints one JSON row for each case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from bench import interpreter
from bench.gpu.rows import commit
from dicache_compile.kernels import combine_triton, fused, operators, rows, statistics_triton
from tests.kernel_inputs import DEVICE, Case, Numbers, case, check_combined, same_bits

SIZES = ((4096, 3072), (1024, 3072), (32760, 1536))
TINY = ((4, 48), (3, 33))
DTYPES = (  # of the stream and of the state
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float8_e4m3fn),
)
REPLAYS = 30


@dataclass(frozen=True, slots=True)
class Row:
    """One case. Times are medians of calls inside a CUDA graph, over buffers that the cache does not hold."""

    operation: str
    shape: tuple[int, ...]
    dtype: str
    state_dtype: str
    triton_ms: float
    inductor_ms: float
    floor_ms: float  # the bytes that have to be moved, at the speed of a copy
    megabytes: float
    copy_gb_s: float  # read and written
    error: float  # against float64, in units of the bound that was derived for it
    inductor_error: float  # likewise
    device: str
    torch: str
    triton: str
    commit: str


@dataclass(frozen=True, slots=True)
class Work:
    """One operation on one set of tensors. Both functions take a set of arguments as `arguments` makes them."""

    name: str
    triton: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    arguments: Callable[[], tuple[Any, ...]]
    megabytes: float
    error: Callable[[Tensor], float]  # of a result, in units of its bound


def statistics_work(call: Case, rehearse: bool) -> Work:
    h, x, h_prev, h_scale, _, _, ring, scales, _ = call.arguments()
    moved = size(h, x, h_prev, h_prev, h_scale, h_scale, ring[0], *scales[:1])  # type: ignore[index]

    def error(sums: Tensor) -> float:
        exact, bound = call.exact(additions(call.h))
        assert (sums[3:] == 0).all()
        return float(((sums.double() - exact).abs() / bound)[:3].max())

    operator = interpreted(statistics_triton.statistics) if rehearse else operators.statistics
    return Work("statistics", operator, fused.statistics, call.arguments, moved, error)


def additions(h: Tensor) -> int:
    """How many additions a term of the kernel's sums goes through."""
    tile_rows, columns = rows.tile(h.shape[-1])
    blocks = math.ceil(h.numel() // h.shape[-1] / tile_rows)
    each = math.ceil(blocks / min(blocks, multiprocessors() * statistics_triton.PROGRAMS))
    # Neighbours in a thread, tile after tile, the tile's lanes, the programs.
    return (
        8 + each * math.ceil(h.shape[-1] / columns) + 2 * math.ceil(math.log2(rows.TILE)) + math.ceil(math.log2(blocks))
    )


def combine_work(call: Case, weights: Tensor, rehearse: bool) -> Work:
    dtype = call.x.dtype
    scales = [scale for _, scale in call.ring if scale is not None]
    residuals = [stored for stored, _ in call.ring]
    read = [place for place, weight in enumerate(weights.tolist()) if weight]
    moved = size(call.x, call.x, *(part[place] for part in (residuals, scales) if part for place in read))

    def error(out: Tensor) -> float:
        return check_combined(out, call.x, call.ring, weights, dtype)

    operator = interpreted(combine_triton.combine) if rehearse else operators.combine
    name = f"combine, {len(read)} of {len(residuals)} read"
    return Work(name, operator, fused.combine, lambda: (call.x, residuals, scales, weights, dtype), moved, error)


def works(rehearse: bool) -> Iterator[tuple[Work, Case, torch.dtype]]:
    for shape in TINY if rehearse else SIZES:
        for dtype, stored in DTYPES:
            call = case(Numbers(0, False), (1, *shape), dtype, stored, x_prev=False)
            yield statistics_work(call, rehearse), call, stored
            for weights in ((0.7, 0.3), (1.0, 0.0)):
                yield combine_work(call, torch.tensor(weights, device=DEVICE), rehearse), call, stored


def interpreted(launch: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: launch(*arguments, multiprocessors=multiprocessors())


def measure(work: Work, call: Case, stored: torch.dtype, copy: float) -> Row:
    inductor = torch.compile(work.reference, fullgraph=True, dynamic=False)
    error, inductor_error = check(work, inductor)
    sets = [cloned(work.arguments()) for _ in range(buffers(work.megabytes))]
    return Row(
        operation=work.name,
        shape=tuple(call.h.shape),
        dtype=str(call.h.dtype),
        state_dtype=str(stored),
        triton_ms=median_ms(work.triton, sets),
        inductor_ms=median_ms(inductor, sets),
        floor_ms=work.megabytes / copy,
        megabytes=work.megabytes,
        copy_gb_s=copy,
        error=error,
        inductor_error=inductor_error,
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, interpreted",
        torch=torch.__version__,
        triton=triton.__version__,
        commit=commit(),
    )


def check(work: Work, inductor: Callable[..., Tensor]) -> tuple[float, float]:
    """Errors in units of the bound. What Inductor makes adds in an order of its own: its error has no bound here."""
    first, second, reference, compiled = (work.arguments() for _ in range(4))
    ours = work.triton(*first)
    assert same_bits(ours, work.triton(*second)), "two runs differ"
    work.reference(*reference)
    for one, two, theirs in zip(first, second, reference, strict=True):
        if isinstance(one, Tensor):
            assert same_bits(one, two), "two runs leave different state"
            assert same_bits(one, theirs), "the state differs from the reference's"
    error = work.error(ours)
    assert error <= 1, f"{work.name} errs by {error} times its bound"
    return error, work.error(inductor(*compiled))


def cloned(arguments: Any) -> Any:
    """With memory of its own for every tensor."""
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(cloned(part) for part in arguments)
    return arguments.clone() if isinstance(arguments, Tensor) else arguments


def median_ms(call: Callable[..., Tensor], sets: list[tuple[Any, ...]]) -> float:
    """Of one call; a round calls on each of the sets, and they are captured together."""
    for arguments in sets:  # compiles, and compiles again where an argument is aligned in another way
        call(*arguments)
    if DEVICE == "cpu":
        begun = time.perf_counter()
        for arguments in sets:
            call(*arguments)
        return (time.perf_counter() - begun) * 1000 / len(sets)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in sets:
            call(*arguments)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 4)]
    for mark in marks:
        mark.record()  # type: ignore[no-untyped-call]
        graph.replay()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks[3:])]  # type: ignore[no-untyped-call]
    return statistics.median(times) / len(sets)


def copy_bandwidth(elements: int) -> float:
    """Gigabytes a second, read and written."""
    source = torch.ones(elements, dtype=torch.float32, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / 1e6 / median_ms(Tensor.copy_, [(target, source)])


def size(*tensors: object) -> float:
    """Megabytes."""
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) / 1e6


def buffers(megabytes: float) -> int:
    """How many sets of tensors are four times what the cache holds."""
    cache = torch.cuda.get_device_properties().L2_cache_size if DEVICE == "cuda" else 0
    return max(2, math.ceil(4 * cache / 1e6 / megabytes))


def multiprocessors() -> int:
    return torch.cuda.get_device_properties().multi_processor_count if DEVICE == "cuda" else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a file for the rows, besides the output")
    parser.add_argument("--seconds", type=float, default=90, help="after which no case is begun")
    parser.add_argument("--rehearse", action="store_true", help="tiny tensors under the interpreter, for the logic")
    given = parser.parse_args()
    if given.rehearse:
        interpreter.prepare()
    elif DEVICE != "cuda":
        parser.error("no GPU; --rehearse runs without one")
    begun, left_out, failed = time.time(), 0, 0
    with torch.no_grad():
        copy = copy_bandwidth(1 << (12 if given.rehearse else 29))
        for work, call, stored in works(given.rehearse):
            if time.time() - begun > given.seconds:
                left_out += 1
                continue
            torch._dynamo.reset()
            try:
                line = json.dumps(asdict(measure(work, call, stored, copy)))
            except Exception as wrong:  # the other cases are worth having
                failed += 1
                line = json.dumps({"operation": work.name, "shape": tuple(call.h.shape), "wrong": repr(wrong)})
            print(line, flush=True)
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(line + "\n")
    print(f"{left_out} cases left out, {failed} failed", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
