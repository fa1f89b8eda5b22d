"""What ranks do in tests: each function runs in a process of its own, where `dist.group.WORLD` is the test's world."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from dicache_compile import DiCacheConfig, Ranks, dicache_backend, explain, generation, reset, stream, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.program import pieces_of
from dicache_compile.write.record import STEP_COLUMNS
from tests import models
from tests.ranks.split import split

STEPS = 20
# No limit on the steps in a row, so that nothing but errors decides.
FREE = {"lowering": "eager", "max_consecutive_skips": None}


class Apart(models.SingleStream):
    """A part of the tokens for each rank, which attend to those of their own rank alone: nothing is exchanged."""

    def enter(self, *args: Any) -> models.Carried:
        carried = super().enter(*args)
        return {**carried, "x": carried["x"].chunk(dist.get_world_size(), dim=1)[dist.get_rank()]}


class Uneven(Apart):
    """The same, with one token more on each rank than on the one before."""

    def enter(self, *args: Any) -> models.Carried:
        carried, rank = models.SingleStream.enter(self, *args), dist.get_rank()
        start = sum(range(rank + 1))
        return {**carried, "x": carried["x"][:, start : start + rank + 1]}


class OwnAttention(models.Attention):
    """Each token attends to itself alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])[:, :, 0]


def by_token(model: nn.Module) -> nn.Module:
    """Its blocks compute each token from that token alone."""
    for block in model.blocks:
        block.attention.__class__ = OwnAttention
    return model


def compiled(model: nn.Module, **config: Any) -> Any:
    options = DiCacheConfig(**{**FREE, **config}).options()
    return torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=False, options=options)


def decisions(model: nn.Module, stream: str = "0") -> list[str]:
    """Of each generation: "D" for a deep step."""
    found = summary(model).generations
    return ["".join(".D"[step.deep] for step in one.streams[stream]) for one in found if stream in one.streams]


def errors(model: nn.Module) -> list[float | None]:
    return [step.error for step in summary(model).generations[-1].streams["0"]]


def uneven(model: models.Model, step: int, tokens: int, steps: int = STEPS, **sizes: int) -> tuple[Tensor, ...]:
    """Inputs whose later tokens move more, so that ranks with other parts find other errors."""
    latents, *more = models.inputs(model, step, steps, tokens=tokens, **sizes)
    first = models.inputs(model, 0, steps, tokens=tokens, **sizes)[0]
    weight = torch.linspace(0, 3, tokens)[:, None]
    return (first + (latents - first) * weight, *more)


@torch.no_grad()
def run(call: Any, model: models.Model, tokens: int, steps: int = STEPS, **sizes: int) -> list[Tensor]:
    return [call(*uneven(model, step, tokens, steps, **sizes)) for step in range(steps)]


def furthest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def context_parallel(kind: str, config: dict[str, Any]) -> tuple[Any, ...]:
    """(decisions, those of one process; errors, of one process; how far pictures are apart)."""
    tokens = 2 * dist.get_world_size()
    one = models.make(getattr(models, kind))
    alone = run(compiled(one, **config), one, tokens)
    many = split(models.make(getattr(models, kind)), dist.group.WORLD)
    ours = run(compiled(many, **config), many, tokens)
    return decisions(many), decisions(one), errors(many), errors(one), furthest(ours, alone)


def by_rows(config: dict[str, Any]) -> tuple[Any, ...]:
    """The same for the rows of a batch."""
    config = {**config, "rows": "independent"}
    tokens, found = 2 * dist.get_world_size(), []
    for model in (models.make(models.SingleStream), split(models.make(models.SingleStream), dist.group.WORLD)):
        out = run(compiled(model, **config), model, tokens, batch=3)
        found.append(([decisions(model, f"0[{row}]") for row in range(3)], out))
    (alone, one), (ours, many) = found
    return ours, alone, furthest(many, one)


def of_requests(config: dict[str, Any]) -> tuple[Any, ...]:
    """The same for requests that are rows, at steps of their own, of batches that change."""
    config = {**config, "rows": "independent", "max_streams": 4}
    tokens, found = 2 * dist.get_world_size(), []
    for model in (models.make(models.SingleStream), split(models.make(models.SingleStream), dist.group.WORLD)):
        call, at, out = compiled(model, **config), dict.fromkeys("abc", 0), []
        order = random.Random(0)
        while names := [name for name in at if at[name] < STEPS]:
            chosen = order.sample(names, min(len(names), 2))
            rows = [uneven(model, at[name], tokens, batch=1, seed="abc".index(name)) for name in chosen]
            with torch.no_grad(), stream(chosen, num_steps=STEPS):
                out.append(call(*(torch.cat(parts) for parts in zip(*rows, strict=True))))
            for name in chosen:
                at[name] += 1
        found.append(([decisions(model, name) for name in at], out))
    (alone, one), (ours, many) = found
    return ours, alone, furthest(many, one)


def tensor_parallel(config: dict[str, Any]) -> tuple[Any, ...]:
    """As `context_parallel`, with the weights of each MLP spread over the ranks."""
    one = models.make(models.SingleStream)
    alone = run(compiled(one, **config), one, 4)
    many = models.make(models.SingleStream)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in many.blocks:
        parallelize_module(block.mlp, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    ours = run(compiled(many, **config), many, 4)
    return decisions(many), decisions(one), errors(many), errors(one), furthest(ours, alone)


def without_exchange(agree: bool, config: dict[str, Any]) -> list[str]:
    """The decisions of ranks that have a part each and exchange nothing."""
    model = models.make(Apart)
    run(compiled(model, agree=Ranks(dist.group.WORLD) if agree else None, **config), model, 2 * dist.get_world_size())
    return decisions(model)


def of_unlike_parts(config: dict[str, Any]) -> tuple[Any, ...]:
    """(decisions, errors) with parts of unlike sizes, and in one process."""
    tokens = sum(range(dist.get_world_size() + 1))
    many, one = by_token(models.make(Uneven)), by_token(models.make(models.SingleStream))
    one.load_state_dict(many.state_dict())
    run(compiled(many, agree=dist.group.WORLD, **config), many, tokens)
    run(compiled(one, **config), one, tokens)
    return decisions(many), decisions(one), errors(many), errors(one)


def data_parallel(config: dict[str, Any]) -> tuple[list[str], bool]:
    """(the decisions of ranks with pictures of their own, whether the graph has a collective)."""
    model = models.make(models.SingleStream)
    call, rank = compiled(model, **config), dist.get_rank()
    with torch.no_grad():
        for step in range(STEPS):
            latents, *more = models.inputs(model, step, STEPS, seed=rank)
            call(latents * (1 + rank * step / STEPS), *more)
    return decisions(model), bool(sum(collectives(model)))


def guidance_parallel(config: dict[str, Any], agree: bool = True) -> tuple[Any, ...]:
    """One call of guidance on each of two ranks, against both in one process: decisions, and pictures."""
    names = ("cond", "uncond")

    def arguments(model: models.Model, name: str, step: int) -> tuple[Tensor, ...]:
        latents, timestep, prompt = models.inputs(model, step, STEPS)
        first = models.inputs(model, 0, STEPS)[0]
        return (latents, timestep, prompt) if name == "cond" else (3 * latents - 2 * first, timestep, -prompt)

    def generate(call: Any, model: models.Model, names: Sequence[str]) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with torch.no_grad():
            for step in range(STEPS):
                for name in names:
                    with stream(name):
                        found[name].append(call(*arguments(model, name, step)))
        return found

    one = models.make(models.SingleStream)
    both = generate(compiled(one, joint=True, **config), one, names)
    own = names[dist.get_rank()]
    many = models.make(models.SingleStream)
    ranks = Ranks(dist.group.WORLD, hold="branches") if agree else None
    ours = generate(compiled(many, agree=ranks, **config), many, [own])
    return decisions(many, own), decisions(one, own), furthest(ours[own], both[own])


def tokens_and_guidance_parallel(config: dict[str, Any]) -> tuple[Any, ...]:
    """Two ranks have the conditional call's tokens, two the other call's, against one process with both in a batch."""
    tokens = 2 * dist.get_world_size()
    one = models.make(models.SingleStream)
    both = run(compiled(one, **config), one, tokens, batch=2)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("guidance", "tokens"))
    branch = mesh.get_local_rank("guidance")
    many = split(models.make(models.SingleStream), mesh["tokens"].get_group())
    call = compiled(many, agree=dist.group.WORLD, **config)
    with torch.no_grad():
        steps = [uneven(many, step, tokens, batch=2) for step in range(STEPS)]
        ours = [call(*(value[branch : branch + 1] for value in step)) for step in steps]
    of_branch = [value[branch : branch + 1] for value in both]
    return decisions(many), decisions(one), errors(many), errors(one), furthest(ours, of_branch)


def sharded(blocks: bool, config: dict[str, Any]) -> tuple[list[str], float, float]:
    """FSDP2, of the model alone or of its blocks, too.

    (Warnings; how far pictures are from those of a cached model in one piece; how far these are from uncached ones).
    """
    plain, one, model = (models.make(models.SingleStream) for _ in range(3))
    uncached = run(plain, plain, 4)
    expected = run(compiled(one, **config), one, 4)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks if blocks else ():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.compile(backend=dicache_backend, options=DiCacheConfig(**{**FREE, **config}).options())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = run(model, one, 4)
    return [str(one.message) for one in told], furthest(found, expected), furthest(expected, uncached)


@torch.no_grad()
def anything_goes(seed: int, steps: int, config: dict[str, Any]) -> str:
    """The decisions of generations of random lengths and prompts, some broken off, where ranks lose their state.

    What happens on all ranks is drawn alike on all, what happens on one is not.
    """
    together, alone = random.Random(seed), random.Random(1000 * seed + dist.get_rank())
    model = split(models.make(models.SingleStream), dist.group.WORLD)
    call, tokens = compiled(model, **config), 2 * dist.get_world_size()
    seen: list[bool] = []
    while len(seen) < steps:
        length, which = together.randint(3, 30), together.randrange(5)
        broken, announced = together.random() < 0.3, together.random() < 0.5
        count = min(together.randint(1, length) if broken else length, steps - len(seen))
        with generation() if announced else nullcontext():
            for step in range(count):
                happens = alone.random()
                if happens < 0.02:
                    reset(model)
                elif happens < 0.04:
                    for state in states(model):
                        state.renew()
                latents, *more = uneven(model, step, tokens, length, seed=which)
                call(latents * float("nan") if alone.random() < 0.01 else latents, *more)
                seen.append(was_deep(model))
    return "".join(".D"[deep] for deep in seen)


def states(model: nn.Module) -> list[Any]:
    return [state for session in sessions_of(model) for state in session.streams.values()]


def was_deep(model: nn.Module) -> bool:
    """Whether the last step of the stream that was called last was deep."""
    last = states(model)[-1].tensors
    return bool(last["log"][(last["logged"] - 1) % len(last["log"]), len(STEP_COLUMNS)])


@torch.no_grad()
def one_rank_begins_anew(config: dict[str, Any]) -> list[bool]:
    """Decisions where the last rank's sampler fails after six steps, and it begins again while others go on."""
    model = split(models.make(models.SingleStream), dist.group.WORLD)
    call, tokens = compiled(model, **config), 2 * dist.get_world_size()
    last, seen = dist.get_rank() == dist.get_world_size() - 1, []
    for step in range(14):
        own = step - 6 if last and step >= 6 else step
        if last and step == 6:
            with pytest.raises(KeyError), generation():
                raise KeyError  # of a callback
        call(*uneven(model, own, tokens))
        seen.append(was_deep(model))
    return seen


@torch.no_grad()
def one_rank_has_another_shape(config: dict[str, Any]) -> list[bool]:
    """Decisions of ranks that exchange sums alone, the last one of which gets more tokens from step 6 on."""
    model = by_token(models.make(models.SingleStream))
    call = torch.compile(
        model,
        backend=dicache_backend,
        fullgraph=True,
        options=DiCacheConfig(**{**FREE, "agree": dist.group.WORLD, **config}).options(),
    )
    last, seen = dist.get_rank() == dist.get_world_size() - 1, []
    for step in range(14):
        call(*models.inputs(model, step, STEPS, tokens=6 if last and step >= 6 else 4))
        seen.append(was_deep(model))
    return seen


@torch.no_grad()
def one_rank_is_told_otherwise(config: dict[str, Any]) -> list[str]:
    """Decisions where ranks have thresholds of their own."""
    model = split(models.make(models.SingleStream), dist.group.WORLD)
    threshold = (0.03, 0.3)[dist.get_rank() % 2]
    run(compiled(model, **config, threshold=threshold), model, 2 * dist.get_world_size())
    return decisions(model)


def collectives(model: nn.Module) -> list[int]:
    """How many collectives each piece of a step has that are not of the model's own blocks."""
    program = sessions_of(model)[-1].last_cut.program
    return [
        sum("_c10d_functional.all_gather" in str(n.target) for n in p.graph_module.graph.nodes)
        for p in pieces_of(program.ops)
    ]


def sums_asked_for(kind: str, config: dict[str, Any]) -> list[int]:
    """The collectives of each piece (P, D, R) of a model whose blocks have none."""
    config = {**config, "agree": dist.group.WORLD}
    model = models.make(getattr(models, kind))
    run(compiled(model, **config), model, 4, 4)
    return collectives(model)


def nodes(config: dict[str, Any]) -> list[int]:
    """How many nodes each piece has."""
    model = models.make(models.SingleStream)
    run(compiled(model, **config), model, 4, 4)
    program = sessions_of(model)[-1].last_cut.program
    return [len(piece.graph_module.graph.nodes) for piece in pieces_of(program.ops)]


def refused(agree: bool) -> tuple[bool, str | None]:
    """Whether a model with collectives in its blocks is cached, and why not."""
    model = split(models.make(models.SingleStream), dist.group.WORLD)
    config = DiCacheConfig(**FREE, agree="auto" if agree else None)
    model.compile(backend=dicache_backend, fullgraph=True, options=config.options())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(model, model, 2 * dist.get_world_size(), 4)
    found = explain(model)
    return found.cached, found.reason
