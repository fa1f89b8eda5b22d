"""What it costs a reused step that ranks decide as one: processes on the CPU, with gloo.

python -m bench.ranks [--ranks 2] [--pairs 60]

With `--ranks 1` one process has PyTorch's fake group of two, in which nobody is waited for: what the added operations
cost, however busy the machine is. With more, the ranks also wait for each other, on cores that they should have alone.
Each rank has the same model twice, compiled by Inductor: one that decides for itself, one that agrees. They take turns,
so that both see the same load of the machine. All steps after the warm-up are reused. Prints one line: medians, and the
median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import FluxTransformer2DModel
from torch.testing._internal.distributed.fake_pg import FakeStore

from dicache_compile import DiCacheConfig, Ranks, dicache_backend

WIDTH, TOKENS, TEXT = 512, 1024, 128


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=WIDTH // 8,
        num_attention_heads=8,
        joint_attention_dim=256,
        pooled_projection_dim=64,
        axes_dims_rope=(16, 24, 24),
        guidance_embeds=False,
    )
    return model.eval().requires_grad_(False)


def _inputs(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = int(TOKENS**0.5)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).flatten(0, 1)
    return {
        "hidden_states": torch.randn(1, TOKENS, 64, generator=generator) * (1 + step / 1000),
        "encoder_hidden_states": torch.randn(1, TEXT, 256, generator=generator),
        "pooled_projections": torch.randn(1, 64, generator=generator),
        "timestep": torch.tensor([1 - step / 1000]),
        "img_ids": torch.cat((torch.zeros(TOKENS, 1), places.float()), -1),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _compiled(model: torch.nn.Module, agree: Ranks | None, error: str) -> torch.nn.Module:
    free = {"threshold": float("inf"), "max_consecutive_skips": None}
    options = DiCacheConfig(**free, error=error, agree=agree).options()
    model = copy.deepcopy(model)
    model.compile(backend=dicache_backend, fullgraph=True, options=options)
    return model


@torch.no_grad()
def _rank(rank: int, ranks: int, pairs: int, meeting: str) -> None:
    torch.set_num_threads(1)
    if ranks == 1:
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    else:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    for error in ("probe", "estimate"):
        model = _model()
        both = [_compiled(model, agree, error) for agree in (None, Ranks(dist.group.WORLD, hold="copies"))]
        seconds: list[list[float]] = [[], []]
        for step in range(pairs + 8):
            for place in (0, 1) if step % 2 else (1, 0):
                dist.barrier()
                started = time.perf_counter()
                both[place](**_inputs(step), return_dict=False)
                seconds[place].append(time.perf_counter() - started)
        alone, agreed = (one[8:] for one in seconds)
        ratio = statistics.median(b / a for a, b in zip(alone, agreed, strict=True))
        if rank == 0:
            medians = " ".join(
                f"{name} {1000 * statistics.median(s):.2f} ms" for name, s in (("alone", alone), ("agreed", agreed))
            )
            print(f"error={error!r}: {ranks} ranks, {pairs} pairs: {medians}, median ratio {ratio:.4f}", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (given.ranks, given.pairs, str(Path(folder) / "meeting")), nprocs=given.ranks)


if __name__ == "__main__":
    main()
