"""Whether ranks that decide as one are captured with NCCL: on two GPUs or more.

torchrun --nproc-per-node 2 -m bench.gpu.ranks --out FOLDER

It has never been run: no machine with two GPUs was at hand. A FLUX of 12 blocks runs in context parallelism
(diffusers' Ulysses), with each engine. Each rank writes a line for each check to `ranks.jsonl`:

- the engine is the one that was asked for, with its reason where it is not;
- all ranks decide the same, and as the engine `calls` does;
- outputs equal those of the engine `calls` (the same compiled pieces) to bfloat16's rounding;
- the median time of a reused step, with `agree` and with a schedule that reuses the same steps and asks nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FluxTransformer2DModel

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, explain, summary

STEPS, TOKENS, TEXT = 30, 4096, 512
ENGINES = ("calls", "graphs", "conditional")


def _model(device: torch.device) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    with torch.device(device):
        model = FluxTransformer2DModel(num_layers=4, num_single_layers=8).to(torch.bfloat16)
    model.eval().requires_grad_(False)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))
    return model


def _inputs(step: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)
    half = torch.bfloat16

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=half)

    side = int(TOKENS**0.5)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).flatten(0, 1)
    return {
        "hidden_states": random(1, TOKENS, 64) + step / STEPS * random(1, TOKENS, 64),
        "encoder_hidden_states": random(1, TEXT, 4096),
        "pooled_projections": random(1, 768),
        "timestep": torch.full((1,), 1 - step / STEPS, device=device, dtype=half),
        "img_ids": torch.cat((torch.zeros(TOKENS, 1), places.float()), -1).to(device),
        "txt_ids": torch.zeros(TEXT, 3, device=device),
        "return_dict": False,
    }


@torch.no_grad()
def _generations(device: torch.device, **config: Any) -> tuple[str, list[torch.Tensor], float, str]:
    """(decisions, outputs, ms of a reused step, the engine and why) of the third of three generations."""
    model = _model(device)
    model.compile(backend=dicache_backend, fullgraph=True, options=DiCacheConfig(num_steps=STEPS, **config).options())
    for _ in range(3):
        outputs, events = [], []
        for step in range(STEPS):
            given = _inputs(step, device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            outputs.append(model(**given)[0].clone())
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
    steps = next(iter(summary(model).generations[-1].streams.values()))
    reused = [start.elapsed_time(end) for (start, end), step in zip(events, steps, strict=True) if not step.deep]
    found = explain(model)
    engine = f"{found.engine}" + (f" ({found.engine_reason})" if found.engine_reason else "")
    took = statistics.median(reused) if reused else float("nan")
    return "".join(".D"[step.deep] for step in steps), outputs, took, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    out.mkdir(parents=True, exist_ok=True)
    rank, rows = dist.get_rank(), []
    expected: list[torch.Tensor] = []
    for engine in ENGINES:
        decided, outputs, took, had = _generations(device, engine="auto" if engine == "conditional" else engine)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, decided)
        expected = expected or outputs
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(outputs, expected, strict=True))
        same = len(set(everyone)) == 1
        row = {"engine": engine, "had": had, "decided": decided, "ranks_agree": same, "apart": apart, "reused_ms": took}
        deep = tuple(step for step, what in enumerate(decided) if what == "D")
        _, _, alone, _ = _generations(device, schedule=Schedule.steps(*deep))
        rows.append({"rank": rank, **row, "reused_ms_of_a_schedule": alone})
    with (out / "ranks.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if rank == 0:
        print("\n".join(map(json.dumps, rows)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
