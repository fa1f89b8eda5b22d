"""What only the deep blocks need of the probe's blocks is left to a deep step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dicache_compile.graph import effects, operators, randomness
from dicache_compile.plan import Region
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.cells import cells
from tests.helpers.graphs import captured
from tests.passes.test_passes import assert_never_reads_backwards, cut_of


class Truncated(nn.Module):
    """A model without its deep blocks."""

    def __init__(self, model: models.Model, probe_depth: int) -> None:
        super().__init__()
        self.model, self.probe_depth = model, probe_depth

    def forward(self, *args: Tensor) -> Tensor:
        return self.model.leave(self.model.run(self.model.enter(*args), 0, self.probe_depth))


def heavy(gm: fx.GraphModule) -> int:
    """How many heavy operations something comes of."""
    live = fx.Graph()
    live.output(live.graph_copy(gm.graph, {}))
    live.eliminate_dead_code()
    return sum(map(operators.is_heavy, live.nodes))


@cells("kind, probe_depth", [models.Mixed, models.SingleStream, models.TwoStream], [1, 2, 3])
def test_a_reused_step_runs_what_the_model_without_its_deep_blocks_would(
    kind: type[models.Model], probe_depth: int
) -> None:
    model = models.make(kind, depth=6)
    args = models.inputs(model, 0, 10)
    with torch.no_grad():
        truncated, _ = captured(Truncated(model, probe_depth), *args)
        whole, _ = captured(model, *args)
    program = cut_of(model, *args, probe_depth=probe_depth).program
    probe, deep, estimate = (heavy(piece.graph_module) for piece in map(program.piece, ("P", "DE", "RE")))
    # Without deep blocks a Mixed still joins text and image, before it takes the image: one linear more.
    assert probe + estimate == heavy(truncated) - (kind is models.Mixed)
    assert probe + deep == heavy(whole)


def moved(model: nn.Module, *args: Any) -> list[str]:
    """The operations of the probe's blocks that run deep."""
    partition = cut_of(model, *args).partition
    probed = {node.name for block in partition.trunk.blocks[:1] for node in block.nodes}
    return [operators.name(node) for node in partition.nodes(Region.DEEP) if node.name in probed]


def test_what_is_cheap_stays() -> None:
    class Cheap(models.DoubleBlock):
        def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            x, text = self.attention(x) + x, text.tanh()
            return x + self.mlp(self.norm(x) + text.mean(1, keepdim=True)), text

    model = models.make(models.TwoStream)
    args = models.inputs(model, 0, 10)
    assert "linear" in moved(models.make(models.Mixed), *args)
    model.joint_blocks = nn.ModuleList(Cheap(model.width, 2) for _ in range(3))
    assert moved(model, *args) == []


class Tail(models.DoubleBlock):
    """A block whose text does something before its last linear, in the first block alone."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__(width, 2)
        self.last, self.first = nn.Linear(width, width), first

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        x, text = super().forward(x, text, time)
        return x, self.last(self.before(text) if self.first else text)

    def before(self, text: Tensor) -> Tensor:
        return text


class Tailed(models.TwoStream):
    def __init__(self, block: type[Tail], depth: int = 3) -> None:
        super().__init__(depth)
        self.joint_blocks = nn.ModuleList(block(self.width, first=index == 0) for index in range(depth))


class Random(Tail):
    def before(self, text: Tensor) -> Tensor:
        return text * torch.rand(1)


class Writing(Tail):
    def __init__(self, width: int, first: bool) -> None:
        super().__init__(width, first)
        self.calls = nn.Buffer(torch.zeros(()))

    def before(self, text: Tensor) -> Tensor:
        self.calls.add_(text.mean())
        return text


@pytest.mark.parametrize(("block", "effect", "linears"), [(Tail, [], 2), (Random, ["rand"], 2), (Writing, ["add_"], 1)])
def test_random_numbers_and_writes_stay_where_they_are(block: type[Tail], effect: list[str], linears: int) -> None:
    model = Tailed(block).eval()
    args = models.inputs(model, 0, 10)
    # What is written stays as well, and what it is computed of; what is read after the write can go.
    assert moved(model, *args).count("linear") == linears
    above = cut_of(model, *args).partition.nodes(Region.PROLOGUE, Region.PROBE)
    assert [operators.name(n) for n in above if randomness.is_random(n) or effects.written(n)] == effect


def test_the_parts_of_a_tuple_go_with_it() -> None:
    class Gated(Tail):
        def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            x, text = super().forward(x, text, time)
            shift, gate = time[:, None].repeat(1, 1, 2).chunk(2, dim=-1)
            return x, text + gate * self.text_mlp(text + shift)  # nothing heavy is behind or before the gate

    model = Tailed(Gated)
    args = models.inputs(model, 0, 10)
    assert moved(model, *args).count("getitem") >= 2
    assert_never_reads_backwards(cut_of(model, *args).partition)


def filled(into: Tensor, x: Tensor) -> None:
    into.copy_(2 * x)


OPS = torch.library.Library("sinking", "DEF")
OPS.define("fill(Tensor(a!) into, Tensor x) -> ()")
OPS.define("fill.scaled(Tensor(a!) into, Tensor x, float by) -> ()")
OPS.define("fill_list(Tensor(a!)[] into, Tensor x) -> ()")
OPS.define("fill_unseen(Tensor into, Tensor x) -> ()")  # says nothing of what it writes
for device in ("CPU", "Meta"):
    OPS.impl("fill", filled, device)
    OPS.impl("fill_list", lambda into, x: filled(into[0], x), device)
    OPS.impl("fill_unseen", filled, device)

WRITERS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "an operator": lambda into, x: torch.ops.sinking.fill.default(into, x),
    "one without its overload": lambda into, x: torch.ops.sinking.fill(into, x),
    "one that takes a list": lambda into, x: torch.ops.sinking.fill_list([into], x),
    "one that does not say so": lambda into, x: torch.ops.sinking.fill_unseen(into, x),
    "a list of tensors": lambda into, x: torch._foreach_copy_([into], [2 * x]),
    "out=": lambda into, x: torch.mul(x, 2, out=into),
}


@torch.no_grad()
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_an_operator_writes_to_is_there_when_it_is_read(writer: Callable[[Tensor, Tensor], object]) -> None:
    class Filling(models.Attention):
        def forward(self, x: Tensor) -> Tensor:
            into = torch.empty_like(x)
            writer(into, self.first(x))  # a linear of which nothing comes but what is written
            return super().forward(into)

    model = models.make(models.Mixed)
    for block in (*model.double_blocks, *model.single_blocks):
        block.attention.__class__ = Filling
        block.attention.first = nn.Linear(model.width, model.width).requires_grad_(False)
    unseen = writer is WRITERS["one that does not say so"]
    assert ("linear" in moved(model, *models.inputs(model, 0, 10))) is not unseen
    call = compiled(model, threshold=0.0)
    for step in range(3):
        args = models.inputs(model, step, 10)
        assert torch.equal(call(*args), model(*args))


@torch.no_grad()
def test_models_that_share_what_moves_are_still_two() -> None:
    one, other = (models.make(models.TwoStream, seed=seed) for seed in range(2))
    other.embed_prompt = one.embed_prompt  # which only the blocks read, all of which a reused step skips
    options: dict[str, Any] = {"threshold": math.inf, "warmup_steps": 2, "probe_depth": 0, "streams": 1}
    alone = generate(compiled(one, **options), one)
    torch._dynamo.reset()
    calls = [(compiled(model, **options), model) for model in (one, other)]
    turns = [[call(*models.inputs(model, step, STEPS)) for call, model in calls] for step in range(STEPS)]
    for (ours, _), expected in zip(turns, alone, strict=True):
        assert torch.equal(ours, expected)


def test_nothing_moves_where_what_would_cross_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(models.TwoStream)
    args = models.inputs(model, 0, 10)
    assert moved(model, *args)
    # No traced model is known in which moving makes anything but tensors and sizes cross.
    monkeypatch.setattr("dicache_compile.passes.sink.not_passable", lambda crossing: crossing[0])
    assert moved(model, *args) == []


def test_a_vmap_stays() -> None:
    class Mapped(Tail):
        def before(self, text: Tensor) -> Tensor:
            return torch.vmap(self.text_mlp)(text)

    model = Tailed(Mapped)
    partition = cut_of(model, *models.inputs(model, 0, 10)).partition
    (scope,) = effects.vmap_scopes(partition.graph_module.graph.nodes)
    assert any(map(operators.is_heavy, scope))
    assert {partition.regions[node] for node in scope} == {Region.PROBE}


def test_an_input_that_only_the_moved_part_reads_is_still_a_condition() -> None:
    class Biased(Tail):
        def before(self, text: Tensor) -> Tensor:
            return text * self.bias

    model = Tailed(Biased).eval()

    class Taking(nn.Module):
        def forward(self, latents: Tensor, timestep: Tensor, prompt: Tensor, bias: Tensor) -> Tensor:
            model.joint_blocks[0].bias = bias
            return model(latents, timestep, prompt)

    args = (*models.inputs(model, 0, 10), torch.ones(1, 1, model.width))
    found = cut_of(Taking(), *args)
    conditions = {node.name: node for node in found.inputs.conditions}
    assert conditions.keys() == {"l_prompt_", "l_bias_"}
    readers = {found.partition.regions[user] for user in conditions["l_bias_"].users}
    assert readers == {Region.DEEP}
