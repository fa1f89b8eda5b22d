"""Sites of which a reused step computes some tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, explain
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import Reuse, Tokens
from dicache_compile.graph import operators
from dicache_compile.rules import Seen
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.contract.test_sublayers import DEEP, Kept
from tests.helpers.cells import cells
from tests.oracles.token_oracle import SomeTokens

SCHEDULE: dict[str, Any] = {"schedule": Schedule.steps(*DEEP), "sites": "mlp"}
HALF = Tokens(0.5, age_weight=0.25, period=3)


def plain(
    model: models.Model, estimator: Tokens, attentions: bool = False, **kinds: Any
) -> tuple[list[Tensor], list[SomeTokens]]:
    """A generation on which the MLPs of all blocks run on some tokens, in plain PyTorch; and these MLPs."""
    parts: list[Any] = []
    for block in model.modules():
        for name in ("mlp", "text_mlp"):
            if isinstance(part := getattr(block, name, None), nn.Module):
                parts.append(SomeTokens(part.forward, estimator.share, estimator.age_weight, estimator.period))
                part.forward = parts[-1]
        if attentions and isinstance(block, models.Attention):
            parts.append(Kept(block.forward))
            block.forward = parts[-1]  # type: ignore[method-assign]
    results = []
    with torch.no_grad():
        for step in range(STEPS):
            for one in parts:
                one.deep = step in DEEP
            results.append(model(*models.inputs(model, step, STEPS, **kinds)))
    return results, [one for one in parts if isinstance(one, SomeTokens)]


@cells("kind, engine", [models.Mixed, models.SingleStream, models.TwoStream], ["calls", "conditional", "cond"])
def test_the_best_tokens_are_computed_and_the_others_reused(kind: type[models.Model], engine: str) -> None:
    model = models.make(kind)
    call = compiled(model, estimator=HALF, engine=engine, **SCHEDULE)
    ours = generate(call, model)
    theirs, parts = plain(models.make(kind), HALF)
    assert_near(ours, theirs)
    uncached = generate(model, model)
    for step, (a, b) in enumerate(zip(ours, uncached, strict=True)):
        assert torch.equal(a, b) == (step in DEEP)
    assert {ran for one in parts for ran in one.ran} >= {6, 3}
    assert_near(generate(call, model), theirs)  # of a second generation nothing is left


def test_attentions_beside_are_reused_as_a_whole() -> None:
    model = models.make(models.Mixed)
    ours = generate(compiled(model, estimator=HALF, **{**SCHEDULE, "sites": ("attention", "mlp")}), model)
    assert_near(ours, plain(models.make(models.Mixed), HALF, attentions=True)[0])
    kept = [slot.name for slot in sessions_of(model)[-1].last_cut.program.slots]
    assert {name.partition(".")[0] for name in kept} >= {"r", "result", "given", "age"}


@pytest.mark.parametrize("kind", [models.SingleStream, models.Mixed])
def test_no_tokens_are_plain_reuse_and_all_tokens_the_model(kind: type[models.Model]) -> None:
    model = models.make(kind)
    none = generate(compiled(model, estimator=Tokens(0.0), **SCHEDULE), model)
    reuse = generate(compiled(model, estimator=Reuse(), **SCHEDULE), model)
    assert all(torch.equal(a, b) for a, b in zip(none, reuse, strict=True))
    every = generate(compiled(model, estimator=Tokens(1.0), **SCHEDULE), model)
    assert_near(every, generate(model, model))


def test_linears_of_a_reused_step_see_the_picked_tokens_alone() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, estimator=HALF, **SCHEDULE)
    for _ in range(2):  # the first one is traced, without data
        with torch.profiler.profile(record_shapes=True) as profile:
            generate(call, model, tokens=8)
    shapes = [event.input_shapes[0] for event in profile.events() if event.name == "aten::linear"]
    tokens = [shape[1] for shape in shapes if len(shape) == 3]
    # On every step two linears around the blocks and two of each attention; two of each MLP.
    assert tokens.count(8) == STEPS * (2 + 2 * model.depth) + len(DEEP) * 2 * model.depth
    assert tokens.count(4) == (STEPS - len(DEEP)) * 2 * model.depth


@pytest.mark.parametrize("state", [None, torch.bfloat16, torch.float8_e4m3fn])
def test_state_of_another_dtype_is_rounded_once(state: torch.dtype | None) -> None:
    model = models.make(models.Mixed, torch.bfloat16)
    ours = generate(compiled(model, estimator=HALF, state_dtype=state, **SCHEDULE), model)
    slots = sessions_of(model)[-1].last_cut.program.slots
    reuse = generate(compiled(model, estimator=Reuse(), **SCHEDULE), model)
    exact = generate(model, model)
    assert all(torch.equal(a, b) for step, (a, b) in enumerate(zip(ours, exact, strict=True)) if step in DEEP)

    def off(results: list[Tensor]) -> float:
        return sum((a.float() - b.float()).square().mean().item() for a, b in zip(results, exact, strict=True))

    assert off(ours) < off(reuse)  # half of the tokens are new
    own = {slot.name.partition(".")[0]: slot.dtype for slot in slots if slot.name[-1].isdigit()}
    # Of what is given differences decide, for which float8 is too coarse.
    given = torch.bfloat16 if state == torch.float8_e4m3fn else state or torch.bfloat16
    assert (own["result"], own["given"], own["age"]) == (state or torch.bfloat16, given, torch.float32)


def test_blocks_of_two_rows_pick_apart() -> None:
    model = models.make(models.SingleStream)
    rows = Schedule.table(Schedule.steps(*DEEP), Schedule.steps(*DEEP))
    ours = generate(compiled(model, estimator=HALF, schedule=rows, sites=(("mlp", 0, 2), ("mlp", 2, 4))), model)
    assert_near(ours, plain(models.make(models.SingleStream), HALF)[0])


def test_a_dynamic_graph_picks_of_as_many_tokens_as_there_are() -> None:
    model = models.make(models.SingleStream)
    options = DiCacheConfig(estimator=HALF, lowering="eager", strict=True, **SCHEDULE).options()
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=True, options=options)
    for tokens in (6, 9, 8):
        theirs, parts = plain(models.make(models.SingleStream), HALF, tokens=tokens)
        for a, b in zip(generate(call, model, tokens=tokens), theirs, strict=True):
            torch.testing.assert_close(a, b)  # a dynamic graph may take the same operations in another order
        assert {ran for one in parts for ran in one.ran} == {tokens, tokens // 2}


def test_no_size_is_told_to_the_compiler_that_some_tokens_do_not_have() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, estimator=HALF, **SCHEDULE), model, steps=1)
    graph = sessions_of(model)[-1].last_cut.program.piece("RE").graph_module.graph
    linears = [node for node in graph.nodes if operators.is_linear(node)]
    assert sum("example_value" not in node.meta for node in linears) == 2 * model.depth


@pytest.mark.exhaustive
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_inductor_it_is_as_in_the_eager_lowering(dynamic: bool) -> None:
    model = models.make(models.SingleStream, depth=2)
    options = DiCacheConfig(estimator=HALF, strict=True, **SCHEDULE).options()
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=dynamic, options=options)
    theirs, _ = plain(models.make(models.SingleStream, depth=2), HALF)
    for a, b in zip(generate(call, model), theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_left_out_counts_no_more_than_the_tokens_that_are() -> None:
    model = models.make(models.SingleStream)
    found = {}
    for share in (0.0, 0.5, 1.0):
        generate(compiled(model, estimator=Tokens(share), **SCHEDULE), model, steps=1)
        found[share] = explain(model).skippable
    assert found[0.0] > 0.2
    # What nobody reads, as what this model makes of its prompt's tokens, is left out with any share.
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2)
    assert found[1.0] < 0.01


def test_a_token_that_moves_is_computed_and_one_that_waits_longest() -> None:
    x = torch.zeros(1, 4, 2)
    x[0, 2] = 1.0
    state = {"given": torch.zeros(1, 4, 2), "age": torch.tensor([0.0, 3, 1, 2]).reshape(1, 4, 1)}
    seen = seen_with(x, state)
    assert Tokens(0.25, age_weight=0.0).pick(seen).tolist() == [[2]]
    assert Tokens(0.5, age_weight=0.25, period=3).pick(seen).tolist() == [[2, 1]]  # 1 + 1/12 and 1/4
    assert Tokens(0.25, age_weight=4.0, period=3).pick(seen).tolist() == [[1]]  # 4 and 1 + 4/3
    assert Tokens(0.29).pick(seen_with(torch.zeros(1, 100, 2), zeros(100))).shape == (1, 29)


def seen_with(x: Tensor, state: dict[str, Tensor], **more: Any) -> Seen:
    number = torch.zeros(())
    return Seen(x=x, h=number, state=state, index=number, time=number, anchors=number, since=number, **more)


def zeros(tokens: int) -> dict[str, Tensor]:
    return {"given": torch.zeros(1, tokens, 2), "age": torch.zeros(1, tokens, 1)}


class Branch(nn.Module):
    """A block whose MLP is a function of the normed stream and the timestep."""

    def __init__(self, width: int, branch: Any) -> None:
        super().__init__()
        self.attention = models.Attention(width, 2)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.position = nn.Parameter(torch.randn(6, width))
        self.branch = branch

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.branch(self, self.norm(x), time)


class Branched(models.Model):
    def __init__(self, branch: Any, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = 2
        self.blocks = nn.ModuleList(Branch(self.width, branch) for _ in range(self.depth))

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        x = carried["x"]
        for block in self.blocks[first:last]:
            x = block(x, carried["time"])
        return {**carried, "x": x}


def modulated(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    shift, scale = of.modulation(time)[:, None].chunk(2, dim=-1)
    return of.second(functional.gelu(of.first(x * (1 + scale) + shift)) * (1 + scale))


def gated(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.first(functional.silu(of.first(x)) * of.second(x))


def halved(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    a, b = of.modulation(x).chunk(2, dim=-1)
    return of.first(a * torch.sigmoid(b))


def grouped(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    """Channels in groups, each normalised as some write it."""
    groups = of.first(x).unflatten(-1, (4, -1))
    return of.second((groups * groups.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()).flatten(-2))


def placed(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    """Each token has numbers of its own."""
    return of.second(torch.relu(of.first(x) + of.position) * x)


def weighed(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return functional.layer_norm(of.first(x) @ of.second.weight, (x.shape[-1],))


@pytest.mark.parametrize("branch", [modulated, gated, halved, grouped, placed, weighed])
def test_branches_of_other_forms_are_computed_by_token(branch: Any) -> None:
    model = models.make(Branched, branch=branch)
    ours = generate(compiled(model, estimator=Tokens(1.0), **SCHEDULE), model)
    # All tokens in another order: right for any branch whose tokens do not look at each other, and for no other.
    assert_near(ours, generate(model, model))
    some = generate(compiled(model, estimator=HALF, **SCHEDULE), model)
    assert all(torch.equal(a, b) == (step in DEEP) for step, (a, b) in enumerate(zip(some, ours, strict=True)) if step)


def summed(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.second(of.first(x).cumsum(1))


def centred(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    first = of.first(x)
    return of.second(first - first.mean(1, keepdim=True))


def convolved(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.convolution(of.first(x).transpose(1, 2)).transpose(1, 2)


def turned(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    """Reads channels as tokens."""
    return of.second(of.first(x).view(x.shape[0], x.shape[2], -1).transpose(1, 2))


def folded(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.second(of.first(x).reshape(-1, x.shape[2])).reshape(x.shape)


def counted(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.second(of.first(x).view(x.shape[0], 6, x.shape[2]))


def shifted(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.second(of.first(x).roll(1, dims=1))


def halves(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    first = of.first(x)
    return of.second(torch.cat((first[:, 3:], first[:, :3]), dim=1))


def only_convolved(of: Branch, x: Tensor, time: Tensor) -> Tensor:
    return of.convolution(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(
    ("branch", "reason"),
    [
        (summed, "an operation is not known to compute each token by itself: `cumsum`"),
        (centred, "an operation does not give each token a part of its own: `mean`"),
        (convolved, "an operation is not known to compute each token by itself: `conv1d`"),
        (turned, "an operation does not give each token a part of its own: `view`"),
        (folded, "an operation does not give each token a part of its own: `reshape`"),
        (counted, "an operation cannot run on some of the tokens alone: `view`"),
        (shifted, "an operation is not known to compute each token by itself: `roll`"),
        (halves, "an operation does not give each token a part of its own: `getitem`"),
        (only_convolved, "no linear of a site takes its tokens in the shape in which it gives them: `conv1d`"),
    ],
)
def test_a_branch_that_may_mix_tokens_is_refused(branch: Any, reason: str) -> None:
    model = models.make(Branched, branch=branch)
    found = explain(compiled(model, estimator=HALF, strict=False, **SCHEDULE), *models.inputs(model, 0, STEPS))
    assert found.reason is not None
    assert found.reason.startswith(reason)
    assert found.reason.endswith(
        "set sites= to parts that compute each token by itself, or use an estimator for all tokens, as Reuse()"
    )


def test_attentions_alone_are_refused() -> None:
    model = models.make(models.SingleStream)
    asked = {**SCHEDULE, "sites": "attention"}
    found = explain(compiled(model, estimator=HALF, strict=False, **asked), *models.inputs(model, 0, STEPS))
    assert "the tokens of an attention look at each other, and there is no other site" in str(found.reason)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: DiCacheConfig(estimator=HALF, schedule=Schedule.every(2)), "runs parts of blocks on some tokens"),
        (lambda: DiCacheConfig(estimator=HALF, sites="mlp"), "parts of blocks have no probe. They need a schedule"),
        (lambda: Tokens(1.5), "share: expected a number from 0 to 1, got 1.5"),
        (lambda: Tokens(0.1, age_weight=-1), "age_weight: expected a number from 0 on, got -1"),
        (lambda: Tokens(0.1, period=0), "period: expected steps above 0, got 0"),
        (lambda: Tokens(0.1, score="map"), "score: expected 'change' or 'norm', got 'map'"),  # type: ignore[arg-type]
        (lambda: Tokens(0.1, grid=(3, 4)), "grid: expected an even number of rows and of columns, got (3, 4)"),
    ],
)
def test_what_it_needs_is_said(make: Any, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        make()


def test_a_grid_of_another_number_of_tokens_is_an_error() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, estimator=Tokens(0.5, grid=(4, 4)), **SCHEDULE)
    with pytest.raises(Exception, match=re.escape("grid=(4, 4) is of 16 tokens, and the site has 6")):
        generate(call, model)
