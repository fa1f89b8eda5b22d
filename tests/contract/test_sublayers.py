"""Parts of blocks as sites: their attentions, cross-attentions and MLPs, on a schedule."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from dicache_compile import DiCacheConfig, Schedule, explain, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import Reuse
from dicache_compile.graph import operators
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells

DEEP = (0, 1, 4, 7)
SCHEDULE: dict[str, Any] = {"schedule": Schedule.steps(*DEEP), "estimator": Reuse()}


class CrossBlock(nn.Module):
    """Attention over the stream, attention over the prompt, an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = models.Attention(width, 2)
        self.query, self.keys, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.gate = nn.Linear(width, width)

    def cross(self, x: Tensor, text: Tensor) -> Tensor:
        k, v = self.keys(text).chunk(2, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(self.query(x), k, v))

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        gate = self.gate(time)[:, None]
        x = x + gate * self.attention(x)
        x = x + self.cross(x, text)
        return x + gate * self.mlp(x)


class Crossing(models.Model):
    """A Wan: self-attention, cross-attention and an MLP a block."""

    def __init__(self, depth: int = 3, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = depth
        self.blocks = nn.ModuleList(CrossBlock(self.width) for _ in range(depth))

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        x = carried["x"]
        for block in self.blocks[first:last]:
            x = block(x, carried["text"], carried["time"])
        return {**carried, "x": x}


class Kept:
    """Has a function give, on some steps, what it gave on the last other one."""

    def __init__(self, run: Any) -> None:
        self.run, self.deep, self.last = run, True, None

    def __call__(self, *args: Any) -> Any:
        if self.deep:
            self.last = self.run(*args)
        return self.last


def plain(model: models.Model, parts: set[str]) -> list[Tensor]:
    """A generation on which these methods of all blocks are reused, in plain PyTorch."""
    kept: list[Kept] = []
    for block in model.modules():
        for name in parts:
            part = getattr(block, name, None) if isinstance(block, (models.Block, CrossBlock)) else None
            if part is not None:
                kept.append(Kept(part.forward if isinstance(part, nn.Module) else part))
                if isinstance(part, nn.Module):
                    part.forward = kept[-1]  # type: ignore[method-assign]
                else:
                    setattr(block, name, kept[-1])
    results = []
    with torch.no_grad():
        for step in range(STEPS):
            for one in kept:
                one.deep = step in DEEP
            results.append(model(*models.inputs(model, step, STEPS)))
    return results


METHODS = {"attention": "attention", "cross_attention": "cross", "mlp": "mlp"}


@cells(
    "kind, sites, engine",
    [Crossing, models.SingleStream],
    ["attention", "mlp", ("attention", "mlp")],
    ["calls", "cond", "conditional"],
)
def test_parts_of_blocks_are_reused_and_the_rest_runs(kind: type[models.Model], sites: Any, engine: str) -> None:
    model = models.make(kind)
    ours = generate(compiled(model, sites=sites, engine=engine, **SCHEDULE), model)
    found, steps = explain(model), summary(model).generations[-1].streams["0"]
    kinds = (sites,) if isinstance(sites, str) else sites
    theirs = plain(models.make(kind), {METHODS[kind] for kind in kinds})
    assert_near(ours, theirs)
    assert all(torch.equal(a, b) for step, (a, b) in enumerate(zip(ours, theirs, strict=True)) if step in DEEP)
    assert tuple(step.index for step in steps if step.deep) == DEEP
    assert f"deep       {' and '.join(kinds)} of " in str(found)
    assert found.probe == ()
    with torch.no_grad():
        uncached = [model(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(ours, uncached, strict=True))


@pytest.mark.parametrize("sites", ["cross_attention", ("cross_attention", "attention", "mlp")])
def test_cross_attention_is_told_by_its_keys(sites: Any) -> None:
    model = models.make(Crossing)
    ours = generate(compiled(model, sites=sites, **SCHEDULE), model)
    kinds = (sites,) if isinstance(sites, str) else sites
    assert_near(ours, plain(models.make(Crossing), {METHODS[kind] for kind in kinds}))
    program = sessions_of(model)[-1].last_cut.program
    counted = {
        name: sum(operators.is_heavy(node) for node in program.piece(name).graph_module.graph.nodes)
        for name in ("P", "DE", "RE")
    }
    # Query, keys, attention and way out of each block are not on a reused step, nor what the keys are made of.
    per_block = {"cross_attention": 4, "attention": 3, "mlp": 2}
    assert counted["DE"] - counted["RE"] == 1 + model.depth * sum(per_block[kind] for kind in kinds)


def test_both_tokens_of_a_joint_attention_are_one_site_of_two_values() -> None:
    model = models.make(models.TwoStream)
    generate(compiled(model, sites="attention", **SCHEDULE), model)
    found = sessions_of(model)[-1].last_cut.partition
    assert len(found.carried) == 2 * model.depth - 1  # what the last block makes of the prompt nobody reads
    assert all(value.form == "value" for value in found.carried)


class Masked(CrossBlock):
    """Its own attention has a mask in numbers; only the first block looks at the prompt."""

    def __init__(self, width: int, looks: bool) -> None:
        super().__init__(width)
        self.looks = looks
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mask = torch.zeros(x.shape[0], x.shape[1], x.shape[1]).tril()
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        x = x + self.cross(x, text) if self.looks else x
        return x + self.mlp(x)


class OneLook(Crossing):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.blocks = nn.ModuleList(Masked(self.width, looks=place == 0) for place in range(self.depth))


@pytest.mark.parametrize("engine", ["calls", "cond", "conditional"])
def test_a_mask_makes_no_cross_attention_and_one_part_alone_can_be_left_out(engine: str) -> None:
    model = models.make(OneLook)
    ours = generate(compiled(model, sites="cross_attention", engine=engine, **SCHEDULE), model)
    assert len(sessions_of(model)[-1].last_cut.partition.carried) == 1
    assert_near(ours, plain(models.make(OneLook), {"cross"}))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"sites": "attention"}, "parts of blocks have no probe. They need a schedule"),
        ({"sites": "attention", "schedule": Schedule.every(3)}, "an estimator that looks at no probe, such as Reuse()"),
        ({"sites": "norm", **SCHEDULE}, "or of 'attention', 'cross_attention', 'mlp' one or several, got 'norm'"),
        ({"sites": ("mlp", "mlp"), **SCHEDULE}, "one or several, got ('mlp', 'mlp')"),
    ],
)
def test_what_parts_need_is_said(config: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        DiCacheConfig(**config)


def test_a_model_without_such_parts_says_so() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, sites="cross_attention", strict=False, **SCHEDULE)
    found = explain(call, *models.inputs(model, 0, STEPS))
    assert found.reason == (
        "no part of a block is cross_attention by its form, among the blocks of blocks; set sites= to another part, or "
        "to whole blocks"
    )


@pytest.mark.parametrize("name", ["wan", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("flux", "sd3"))])
@pytest.mark.parametrize("sites", ["attention", pytest.param("mlp", marks=pytest.mark.exhaustive)])
def test_parts_of_a_diffusers_models_blocks_are_found(name: str, sites: str) -> None:
    pytest.importorskip("zoo.more_b", exc_type=ImportError, reason="the zoo has classes of diffusers 0.42")
    entry = zoo.entries()[name]
    model, call = entry.build(), entry.call()
    config = DiCacheConfig(sites=sites, lowering="eager", strict=True, num_steps=8, streams=1, **SCHEDULE)
    compiled_model = torch.compile(model, backend="dicache", fullgraph=True, options=config.options())
    changed = []
    with torch.no_grad():
        for step in range(4):
            given = {name: one + 0.1 * step if name == "hidden_states" else one for name, one in call.items()}
            ours, theirs = compiled_model(**given)[0], model(**given)[0]
            assert step not in DEEP or torch.equal(ours, theirs)
            changed.append(not torch.equal(ours, theirs))
    assert changed == [step not in DEEP for step in range(4)]
    assert len(sessions_of(model)[-1].last_cut.partition.carried) >= len(explain(model).blocks)
