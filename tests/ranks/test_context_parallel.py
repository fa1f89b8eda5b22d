"""Context parallelism of diffusers, by its own `enable_parallelism`: a FLUX and a Wan on two ranks, as in one process.

What of diffusers 0.42 does not run on a CPU, or under `fullgraph=True`, is stood in for by `_ready`. It divides by the
number of accelerators. Its native attention gives no log-sum-exp, which the ring needs ("Native attention does not
support return_lse=True"). It warns by a logger, and has Dynamo take Wan's block as it is, which has a hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.ranks.jobs import compiled, decisions, furthest
from tests.ranks.test_agree import ROUNDING
from tests.ranks.world import World
from zoo import given

STEPS = 12


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    found = World(2)
    yield found
    found.close()


def _attend(
    ctx: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _save_ctx: bool = True,
    _parallel_config: Any = None,
) -> Any:
    """Attention of [B, tokens, heads, width] as it is written down, with the log-sum-exp of its scores."""
    q, k, v = (one.permute(0, 2, 1, 3) for one in (query, key, value))
    scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    out = (scores.softmax(-1) @ v).permute(0, 2, 1, 3)
    return (out, scores.logsumexp(-1).permute(0, 2, 1)) if return_lse else out


def _ready() -> None:
    import diffusers.models.attention_dispatch as dispatch
    from diffusers.hooks import context_parallel
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    torch.accelerator.device_count = lambda: 1
    dispatch._native_attention_forward_op = _attend
    torch._dynamo.config.ignore_logging_functions.add(context_parallel.logger.warning_once)
    torch._dynamo.config.ignore_logging_functions.add(type(context_parallel.logger).warning_once)
    with suppress(KeyError):  # an earlier test did so
        torch._dynamo.trace_rules._allowed_callable_ids.remove(id(WanTransformerBlock))


@torch.no_grad()
def _generate(model: nn.Module, name: str, config: dict[str, Any]) -> list[Tensor]:
    call = compiled(model, **config)
    inputs = {**given.call(name), "return_dict": False}
    latents = inputs["hidden_states"]
    drift = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    out = []
    for step in range(STEPS):
        moved = latents + 0.5 * step / STEPS * drift
        time = torch.full_like(inputs["timestep"], int(1000 * (1 - step / STEPS)))
        (found,) = call(**{**inputs, "hidden_states": moved, "timestep": time})
        out.append(found)
    return out


def job(name: str, kind: str, config: dict[str, Any]) -> tuple[Any, ...]:
    from diffusers import ContextParallelConfig

    _ready()
    one, many = given.build(name), given.build(name)
    alone = _generate(one, name, config)
    many.enable_parallelism(config=ContextParallelConfig(**{f"{kind}_degree": dist.get_world_size()}))
    ours = _generate(many, name, config)
    scale = max(float(one.abs().max()) for one in alone)
    return decisions(many), decisions(one), furthest(ours, alone) / scale


@pytest.mark.parametrize(
    ("name", "kind", "threshold"),
    [
        ("flux", "ulysses", 0.05),
        ("wan", "ring", 0.05),
        pytest.param("flux", "ring", 0.05, marks=pytest.mark.exhaustive),
        pytest.param("wan", "ulysses", 0.05, marks=pytest.mark.exhaustive),
    ],
)
def test_a_model_on_two_ranks_decides_and_gives_what_it_does_on_one(
    world: World, name: str, threshold: float, kind: str
) -> None:
    found = world.run(job, name, kind, {"threshold": threshold, "error": "probe"})
    ours, alone, apart = found[0]
    assert all(other[0] == ours for other in found)
    assert ours == alone
    assert set(ours[0]) == {".", "D"}
    assert apart < ROUNDING
