"""Models written in uncommon ways: cut where their blocks are, exact deep steps, reused steps as an oracle has them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dicache_compile import DiCacheConfig, dicache_backend, explain, summary
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import assert_near
from tests.helpers.published import published
from tests.models import Carried, structures
from tests.models.structures import Structure
from tests.oracles.plain_oracle import PlainDiCache

STEPS = 6
EXACT: dict[str, Any] = {"threshold": 0.0}
REUSING: dict[str, Any] = {"threshold": math.inf, "warmup_steps": 2, "max_consecutive_skips": 2}
DEEP = (True, True, False, False, True, False)  # what REUSING does


def run_both(model: nn.Module, calls: Sequence[tuple[Any, ...]], **reusing: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What a model gives at threshold 0, and with all reused that may be; traced once, as that takes the longest."""
    # Some of these blocks do not add to what they are given; of what a cut carries the oracle tells.
    configs = {"exact": EXACT, "reusing": {**REUSING, **reusing}}
    using = "exact"

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        said: dict[str, Any] = {"lowering": "eager", "strict": True, "carried": "residual"}
        settings = {n: published(**said, **c).options() for n, c in configs.items()}
        steps = {name: dicache_backend(gm, examples, options=options) for name, options in settings.items()}
        return lambda *inputs: steps[using](*inputs)

    call = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    results = []
    for using in configs:  # noqa: B007  read by the backend
        with torch.no_grad():
            results.append([call(*arguments).clone() for arguments in calls])
    return results[0], results[1]


def check_structure(structure: Structure) -> None:
    """Fails with what differs: deep steps in any bit, reused ones by more than the order of sums explains."""
    torch._dynamo.reset()
    model = structures.make(structure)
    calls = [structures.inputs(structure, step, STEPS) for step in range(STEPS)]
    with torch.no_grad():
        plain = [model(*(argument.clone() for argument in arguments)) for arguments in calls]
    exact, reusing = run_both(model, calls, estimator=Reuse())
    assert all(torch.equal(a, b) for a, b in zip(exact, plain, strict=True)), "a deep step differs"
    blocks = len(explain(model).blocks)
    assert blocks in (structure.depth, structure.depth + len(model.image_refiner)), f"{blocks} blocks"
    steps = next(iter(summary(model).generations[-1].streams.values()))
    assert tuple(step.deep for step in steps) == DEEP
    oracle = structures.Oracle(model, blocks)
    for place, (step, ours) in enumerate(zip(steps, reusing, strict=True)):
        theirs, errors = oracle(calls[place], step.deep)
        # Float32 sums in another order, through an epilogue of a norm and a linear.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        # Where blocks have no modules of their own, they may as well begin a few operations later.
        named = structure.holds in ("list", "sequential", "dict") or not structure.skips
        named &= structure.holds not in ("attributes", "functional")
        assert not errors or not named or any(step.error == pytest.approx(error, rel=1e-4) for error in errors)


def random_structures(count: int, seed: int) -> list[Structure]:
    """Structures that differ from the plainest one in a few things each."""
    choose = random.Random(seed)
    choices, found = structures.choices(), dict[Structure, None]()
    while len(found) < count:
        changed = {name: choose.choice(of) for name, of in choices.items() if choose.random() < 0.35}
        structure = replace(Structure(), **{**changed, "meeting": choose.choice(choices["meeting"])})
        if not (structure.skips and structure.layout in ("axial", "rolled", "sorted")):
            found[structure] = None
    return list(found)


FEW, MORE = random_structures(12, seed=1), random_structures(24, seed=1)[12:]


@pytest.mark.parametrize(
    "structure", [*FEW, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in MORE)], ids=str
)
def test_a_random_structure_is_cut_where_its_blocks_are(structure: Structure) -> None:
    check_structure(structure)


@pytest.mark.exhaustive
@pytest.mark.parametrize("structure", random_structures(300, seed=2), ids=str)
def test_many_random_structures_are_cut_where_their_blocks_are(structure: Structure) -> None:
    check_structure(structure)


def check(
    model: models.Model, gamma_range: tuple[float, float] = (1.0, 1.5), oracle_of: models.Model | None = None
) -> None:
    """A hand-written model against the oracle that runs its parts, or those of another model that computes the same."""
    calls = [models.inputs(model, step, STEPS) for step in range(STEPS)]
    traced = torch.compile(model, backend="eager", dynamic=False)  # PyTorch's own layers take another way in eager mode
    with torch.no_grad():
        plain = [traced(*arguments) for arguments in calls]
    torch._dynamo.reset()
    exact, reusing = run_both(model, calls, gamma_range=gamma_range)
    assert all(torch.equal(a, b) for a, b in zip(exact, plain, strict=True))
    assert len(explain(model).blocks) == model.depth
    oracle = PlainDiCache(oracle_of or model, math.inf, warmup=2, max_skips=2, gamma_range=gamma_range)
    assert_near(reusing, [oracle(*arguments) for arguments in calls])
    assert tuple(oracle.deep) == DEEP
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(reusing, plain, strict=True))  # it does make a difference


def test_every_second_token_of_what_leaves_the_trunk_is_estimated_as_such() -> None:
    class EverySecond(models.SingleStream):
        def leave(self, carried: Carried) -> Tensor:
            return super().leave({**carried, "x": carried["x"][:, ::2]})

    # Only what goes on is measured; with this range gamma, which depends on what is, is the same.
    check(models.make(EverySecond), gamma_range=(1.0, 1.0))


class Controlled(models.SingleStream):
    """Blocks of its own for a condition, as many as the trunk has and larger, whose results the trunk adds."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.control_blocks = nn.ModuleList(models.Block(self.width, 2) for _ in range(self.depth))
        self.zero = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(self.depth))

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        control = carried["x"] + carried["text"].mean(1, keepdim=True) if first == 0 else carried["control"]
        results = carried.get("results", ())
        if first == 0:
            for block, zero in zip(self.control_blocks, self.zero, strict=True):
                control = block(control, carried["time"])
                results = (*results, zero(control))
        x = carried["x"]
        for position in range(first, last):
            if position:
                x = x + results[position - 1]
            x = self.blocks[position](x, carried["time"])
        return {**carried, "x": x, "results": results, "control": control}


def test_the_blocks_that_are_controlled_are_the_trunk_and_those_of_the_control_are_skipped_too() -> None:
    model = models.make(Controlled)
    check(model)
    assert explain(model).trunk == ("blocks",)
    assert explain(model).skippable > 0.6


class Encoding(models.SingleStream):
    """A text encoder inside of `forward`, with more and wider blocks than the denoiser."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**{"depth": 3, **sizes})
        self.encoder = nn.ModuleList(models.Block(self.width, 2) for _ in range(8))

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> Carried:
        carried = super().enter(hidden_states, timestep, prompt)
        text = carried["text"]
        for block in self.encoder:
            text = block(text, torch.zeros_like(carried["time"]))
        return {**carried, "time": carried["time"] + text.mean(1)}


def test_an_encoder_of_the_prompt_is_not_the_trunk_however_large() -> None:
    model = models.make(Encoding)
    check(model)
    assert explain(model).trunk == ("blocks",)


class ComplexBlock(models.Block):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        real = super().forward(x.real, time)
        return x + torch.complex(real, 0.3 * self.attention(x.imag))


class Complex(models.SingleStream):
    """Blocks that carry complex numbers."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.blocks = nn.ModuleList(ComplexBlock(self.width, 2) for _ in range(self.depth))

    def enter(self, *arguments: Any) -> Carried:
        carried = super().enter(*arguments)
        return {**carried, "x": torch.complex(carried["x"], carried["x"].flip(-1))}

    def leave(self, carried: Carried) -> Tensor:
        return super().leave({**carried, "x": carried["x"].real + 0.7 * carried["x"].imag})


def test_complex_numbers_keep_both_of_their_parts() -> None:
    model = models.make(Complex)
    calls = [models.inputs(model, step, STEPS) for step in range(STEPS)]
    exact, reusing = run_both(model, calls, estimator=Reuse())
    with torch.no_grad():
        for place, arguments in enumerate(calls):
            carried = model.enter(*arguments)
            x = carried["x"]
            y = model.run(carried, 0, model.depth)["x"]
            assert torch.equal(exact[place], model.leave({**carried, "x": y}))
            if DEEP[place]:
                residual = y - x
            expected = model.leave({**carried, "x": x + residual})
            torch.testing.assert_close(reusing[place], expected, rtol=1e-5, atol=1e-5)


class FlattenedBlock(models.Block):
    """`f(x) + x`: what it gives lies in memory as f(x) does."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.attention(self.norm(x) + time[:, None]) + x
        return self.mlp(self.norm(x)) + x


class Flattened(models.SingleStream):
    """The epilogue takes a view of what leaves the trunk; what enters it lies in memory with its channels first."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.blocks = nn.ModuleList(FlattenedBlock(self.width, 2) for _ in range(self.depth))

    def enter(self, *arguments: Any) -> Carried:
        carried = super().enter(*arguments)
        return {**carried, "x": carried["x"].transpose(1, 2).contiguous().transpose(1, 2)}

    def leave(self, carried: Carried) -> Tensor:
        return self.unembed(carried["x"].view(-1, self.width)).view(*carried["x"].shape[:2], -1)


class ChannelsFirst(models.SingleStream):
    """What enters the trunk lies in memory with its channels first, and so does all that the blocks carry."""

    def enter(self, *arguments: Any) -> Carried:
        carried = super().enter(*arguments)
        return {**carried, "x": carried["x"].transpose(1, 2).contiguous().transpose(1, 2)}


class Reshaped(Flattened):
    """The same for any layout, which the oracle needs."""

    def leave(self, carried: Carried) -> Tensor:
        return super().leave({**carried, "x": carried["x"].contiguous()})


def test_a_view_of_the_deep_result_is_one_of_the_estimate_too() -> None:
    model = models.make(Flattened)
    plain = models.make(Reshaped)
    plain.load_state_dict(model.state_dict())
    check(model, oracle_of=plain)


@torch.library.custom_op("dicache_tests::gated_sum", mutates_args=())
def gated_sum(x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    return x * 0.95 + gate * f


@gated_sum.register_fake
def _(x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(x)


class CustomResiduals(models.SingleStream):
    """Residuals that are one operator that nobody knows."""

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        gate = carried["time"].sigmoid()[:, None].expand_as(x).contiguous()
        for block in self.blocks[first:last]:
            x = gated_sum(x, block.attention(block.norm(x)), gate)
            x = gated_sum(x, block.mlp(block.norm(x)), gate)
        return {**carried, "x": x}


class ConvolvedBlock(models.Block):
    """A convolution of one pixel stands on the way of the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.mixer = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.mixer(super().forward(x, time).transpose(1, 2)).transpose(1, 2)


class Convolved(models.SingleStream):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.blocks = nn.ModuleList(ConvolvedBlock(self.width, 2) for _ in range(self.depth))


class HyperConnected(models.SingleStream):
    """Two lanes that every block mixes, instead of one residual (hyper-connections, arXiv 2409.19606)."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.mixes = nn.ParameterList(nn.Parameter(torch.eye(2) + 0.1 * torch.randn(2, 2)) for _ in range(self.depth))

    def enter(self, *arguments: Any) -> Carried:
        carried = super().enter(*arguments)
        return {**carried, "x": torch.stack((carried["x"], 0.5 * carried["x"]))}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for mix, block in zip(self.mixes[first:last], self.blocks[first:last], strict=True):
            mixed = torch.einsum("ij,jbtc->ibtc", mix, x)
            x = mixed + block(mixed[0], carried["time"])[None] * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return super().leave({**carried, "x": carried["x"].sum(0)})


@pytest.mark.parametrize("kind", [CustomResiduals, Convolved, HyperConnected])
def test_what_the_second_block_takes_says_where_the_first_one_takes_its_own(kind: type[models.Model]) -> None:
    check(models.make(kind))


class Encoder(models.SingleStream):
    """PyTorch's own layers, which in eval mode are one operator each."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(self.width, 2, 2 * self.width, batch_first=True) for _ in range(self.depth)
        )

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for block in self.blocks[first:last]:
            x = block(x)
        return {**carried, "x": x}


class MultiHead(models.SingleStream):
    """PyTorch's own attention."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(self.width, 2, batch_first=True) for _ in range(self.depth)
        )

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for attention, block in zip(self.attentions[first:last], self.blocks[first:last], strict=True):
            x = x + attention(x, x, x, need_weights=False)[0]
            x = x + block.mlp(block.norm(x))
        return {**carried, "x": x}


@pytest.mark.parametrize("kind", [Encoder, MultiHead])
def test_layers_that_are_one_operator_are_blocks(kind: type[models.Model]) -> None:
    check(models.make(kind))


class ThreeInTurn(models.SingleStream):
    """A list for space, one for time and one for the prompt take turns, with reshapes between them."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**{"depth": 3, **sizes})
        self.spaces, self.times, self.crosses = (
            nn.ModuleList(models.Block(self.width, 2) for _ in range(self.depth)) for _ in range(3)
        )
        del self.blocks

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, time = carried["x"], carried["time"]
        batch, frames = x.shape[0], 2
        for place in range(first, last):
            x = x.unflatten(1, (frames, -1)).flatten(0, 1)
            x = self.spaces[place](x, time.repeat_interleave(frames, 0))
            x = x.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)
            x = self.times[place](x, time.repeat_interleave(x.shape[0] // batch, 0))
            x = x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(1, 2)
            x = self.crosses[place](x, time + carried["text"].mean(1))
        return {**carried, "x": x}


def test_three_lists_that_take_turns_are_one_trunk() -> None:
    model = models.make(ThreeInTurn)
    check(model)
    assert explain(model).trunk == ("spaces", "times", "crosses")


class SkipsInOneList(models.SingleStream):
    """A U-ViT whose blocks are parts in one list that are never called; the second half joins what the first left."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**{"depth": 6, **sizes})
        width, half = self.width, self.depth // 2
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    nn.Linear(2 * width, width) if place >= half else nn.Identity(),
                    nn.LayerNorm(width),
                    models.Attention(width, 2),
                    nn.LayerNorm(width),
                    nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
                )
            )
            for place in range(self.depth)
        )
        del self.blocks

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, skips = carried["x"], list(carried["skips"])
        for place in range(first, last):
            join, attention_norm, attention, norm, mlp = self.layers[place]
            x = join(torch.cat((x, skips.pop()), dim=-1)) if place >= self.depth // 2 else x
            skips += [x] if place < self.depth // 2 else []
            x = x + attention(attention_norm(x)) * carried["time"][:, None].sigmoid()
            x = x + mlp(norm(x))
        return {**carried, "x": x, "skips": skips}


def test_skips_within_one_list_of_parts_do_not_cut_it() -> None:
    model = models.make(SkipsInOneList)
    check(model)
    assert explain(model).trunk == ("layers",)


def test_tokens_in_an_order_that_the_blocks_compute_are_refused() -> None:
    class Sorted(models.SingleStream):
        def run(self, carried: Carried, first: int, last: int) -> Carried:
            x = carried["x"]
            for block in self.blocks[first:last]:
                x = block(x, carried["time"])
                x = x.gather(1, x.mean(-1, keepdim=True).argsort(1).expand_as(x))
            return {**carried, "x": x}

    model = models.make(Sorted)
    call = torch.compile(
        model, backend=dicache_backend, fullgraph=True, options=DiCacheConfig(lowering="eager", strict=True).options()
    )
    with torch.no_grad(), pytest.raises(Exception, match="order that the blocks themselves compute") as caught:
        call(*models.inputs(model, 0, STEPS))
    assert "TokenOrderError: cut_trunk" in str(caught.value)


class Unnamed(nn.Module):
    """Blocks that are written out with weights in a list, and count sizes as they go."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depth, self.width = depth, width
        shapes = [(3 * width, width), (width, width), (2 * width, width), (width, 2 * width)]
        self.weights = nn.ParameterList(
            nn.Parameter(0.3 * torch.randn(*shape), requires_grad=False) for _ in range(depth) for shape in shapes
        )

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = hidden_states + timestep.sin()[:, None, None]
        for place in range(self.depth):
            batch, tokens, width = x.shape
            into, out, up, down = (self.weights[4 * place + i] for i in range(4))
            qkv = functional.linear(x, into).reshape(batch, tokens, 3, 2, width // 2)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * 2, tokens, width // 2).unbind(0)
            mixed = torch.softmax(q @ k.transpose(1, 2) / (width // 2) ** 0.5, dim=-1) @ v
            mixed = mixed.reshape(batch, 2, tokens, width // 2).transpose(1, 2).reshape(batch, tokens, width)
            x = x + functional.linear(mixed, out)
            flat = functional.gelu(functional.linear(x.reshape(batch * tokens, width), up))
            x = x + functional.linear(flat, down).reshape(batch, tokens, width)
        return x


def test_blocks_without_names_are_found_at_every_size() -> None:
    model = Unnamed()
    options = DiCacheConfig(lowering="eager", strict=True, **REUSING).options()
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, options=options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for batch, tokens in ((2, 9), (2, 12), (2, 9), (3, 15), (2, 9)):
            latents = torch.randn(batch, tokens, 8, generator=generator)
            for step in range(STEPS):
                call(latents + 0.1 * step, torch.full((batch,), 1 - step / STEPS))
            assert len(explain(model).blocks) == model.depth
            steps = next(iter(summary(model).generations[-1].streams.values()))
            assert tuple(step.deep for step in steps) == DEEP
