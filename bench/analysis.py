"""How long the passes take: over the number of blocks, and beside Inductor's compile time.

    python -m bench.analysis            # 10 to 160 blocks, and 57 beside Inductor
    python -m bench.analysis --no-inductor

The graphs are of FLUX.1-dev's full width on the `meta` device, with one double block for every two single ones, as in
its 19 and 38. What the passes do depends on the nodes of a graph and not on its sizes, so Inductor's side is a model of
as many blocks and a fraction of the width, on the CPU and with Inductor's caches off.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, fx, nn

from dicache_compile import DiCacheConfig
from dicache_compile.cut import cut
from dicache_compile.lowering import lower_graph

MEASURED = Path(__file__).parent / "measured" / "analysis.jsonl"
REPEATS = 5
FULL = {"attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
NARROW = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}


@dataclass(frozen=True)
class Row:
    """One graph. Seconds are medians of REPEATS but for `inductor`, which is one cold compilation."""

    blocks: int
    nodes: int
    analysis: float  # all passes: find, partition, build
    trace: float  # Dynamo's own, once
    inductor: float | None  # of the model without the cache


def flux(blocks: int, sizes: dict[str, int], device: str) -> nn.Module:
    doubles = round(blocks / 3)
    axes = (16, 56, 56) if sizes is FULL else (4, 6, 6)
    with torch.device(device):
        model = diffusers.FluxTransformer2DModel(
            num_layers=doubles, num_single_layers=blocks - doubles, guidance_embeds=True, axes_dims_rope=axes, **sizes
        )
    return model.eval().requires_grad_(False)


def call(sizes: dict[str, int], device: str) -> dict[str, Tensor]:
    """One call at 1024 x 1024, or at a small size for the narrow model."""
    image, text = (4096, 512) if sizes is FULL else (64, 16)
    with torch.device(device):
        return {
            "hidden_states": torch.ones(1, image, 64),
            "encoder_hidden_states": torch.ones(1, text, sizes["joint_attention_dim"]),
            "pooled_projections": torch.ones(1, sizes["pooled_projection_dim"]),
            "timestep": torch.ones(1),
            "guidance": torch.ones(1),
            "img_ids": torch.ones(image, 3),
            "txt_ids": torch.ones(text, 3),
        }


def traced(blocks: int, sizes: dict[str, int], device: str, use: Callable[..., Any]) -> float:
    """Traces the model and calls `use(graph, examples)` while Dynamo compiles it; Dynamo's own seconds."""
    spent = 0.0

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Any:
        nonlocal spent
        start = time.perf_counter()
        use(gm, examples)
        spent += time.perf_counter() - start
        return gm.forward

    torch._dynamo.reset()
    model, inputs = flux(blocks, sizes, device), call(sizes, device)
    start = time.perf_counter()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(**inputs)
    return time.perf_counter() - start - spent


def analysis(gm: fx.GraphModule, examples: Sequence[Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = cut(gm, examples, DiCacheConfig())
        seconds.append(time.perf_counter() - start)
    assert found.partition.trunk.owners == ("transformer_blocks", "single_transformer_blocks")
    return statistics.median(seconds)


def measure(blocks: int, with_inductor: bool) -> Row:
    found: dict[str, Any] = {}

    def passes(gm: fx.GraphModule, examples: Sequence[Any]) -> None:
        found["nodes"], found["analysis"] = len(gm.graph.nodes), analysis(gm, examples)

    def inductor(gm: fx.GraphModule, examples: Sequence[Any]) -> None:
        start = time.perf_counter()
        lower_graph(gm, examples, {"force_disable_caches": True})
        found["inductor"] = time.perf_counter() - start

    found["trace"] = traced(blocks, FULL, "meta", passes)
    if with_inductor:
        traced(blocks, NARROW, "cpu", inductor)
    return Row(blocks=blocks, **{"inductor": None, **found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--blocks", type=int, nargs="*", default=[10, 20, 40, 57, 80, 160])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(3, with_inductor=False)  # the first trace imports half of PyTorch
    rows: list[Row] = []
    print("blocks  nodes  analysis  per block     trace  Inductor  share")
    for blocks in arguments.blocks:
        row = measure(blocks, with_inductor=blocks == 57 and not arguments.no_inductor)
        share = "" if row.inductor is None else f"{row.inductor:7.1f} s  {row.analysis / row.inductor:5.1%}"
        print(
            f"{blocks:6}  {row.nodes:5}  {row.analysis:6.2f} s  {1000 * row.analysis / blocks:6.1f} ms  "
            f"{row.trace:6.1f} s  {share}",
            flush=True,
        )
        rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    made = {"device": platform.machine(), "torch": torch.__version__, "commit": commit.stdout.strip()}
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text("".join(json.dumps({**asdict(row), **made}) + "\n" for row in rows))


if __name__ == "__main__":
    main()
