"""A cut is held against the truth on the first two deep steps, and says where its estimates are none."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import Schedule, generation, summary
from dicache_compile.calls import cut_check
from dicache_compile.calls.session import sessions_of
from dicache_compile.errors import CacheWarning
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.cells import cells
from tests.helpers.published import published

pytestmark = pytest.mark.shares_traces


@torch.library.custom_op("dicache_tests::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    """The tokens the other way round: nothing in the graph tells."""
    return x.flip(1).contiguous()


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Turning(nn.Module):
    """A block that hands its tokens on the other way round."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return turned(self.block(x, time))


def turning(depth: int) -> models.Model:
    model = models.make(models.SingleStream, depth=depth)
    model.blocks = nn.ModuleList(Turning(block) for block in model.blocks)  # type: ignore[union-attr]
    return model


@torch.no_grad()
def restless(call: Any, model: models.Model) -> list[Tensor]:
    """A generation whose latents are new on each step."""
    _, _, prompt = models.inputs(model, 0, STEPS)
    steps = [models.inputs(model, step, STEPS, seed=step)[:2] for step in range(STEPS)]
    return [call(*latents_and_time, prompt) for latents_and_time in steps]


def deep(model: models.Model) -> list[bool]:
    return [step.deep for step in next(iter(summary(model).generations[-1].streams.values()))]


@cells("engine, strict", ["calls", "conditional", "graphs"], [False, True])
def test_an_estimate_that_is_none_is_told_and_strict_runs_uncached(engine: str, strict: bool) -> None:
    model = turning(5)
    call = compiled(model, warmup_steps=2, threshold=1e9, strict=strict, engine=engine, carried="auto")
    with pytest.warns(CacheWarning, match="are further from it than what they gave on the step before") as caught:
        ours = restless(call, model)
    (told,) = [str(one.message) for one in caught if issubclass(one.category, CacheWarning)]
    assert ("With strict=True every step runs deep" in told) is strict
    assert all(deep(model)) is strict
    if strict:
        assert all(torch.equal(a, b) for a, b in zip(ours, restless(model, model), strict=True))
        with generation(num_steps=STEPS):
            restless(call, model)
        assert all(deep(model))


def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each step that a check has looked at, how many verdicts there are then."""
    found: list[int] = []
    look = cut_check.CutCheck._look

    def counted(self: cut_check.CutCheck, registers: Any) -> None:
        look(self, registers)
        found.append(len(self.verdicts))

    monkeypatch.setattr(cut_check.CutCheck, "_look", counted)
    return found


@pytest.mark.filterwarnings("ignore:9 of 10 steps")  # which is told, too
@pytest.mark.parametrize(("deep_steps", "looked"), [((0, 4, 8), 2), ((0,), 2)])
def test_a_step_that_is_known_to_be_reused_is_not_looked_at(
    deep_steps: tuple[int, ...], looked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, model = looks(monkeypatch), models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.steps(*deep_steps), estimator=Reuse(), streams=1)
    for _ in range(3):
        with generation(num_steps=STEPS):
            restless(call, model)
    assert deep(model) == [step in deep_steps for step in range(STEPS)]
    assert len(found) == looked


@pytest.mark.filterwarnings("ignore:9 of 10 steps")  # which is told, too
def test_a_check_ends_where_a_generation_has_one_deep_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one's first step is the second deep one that it sees, of which the first one's tells nothing."""
    found, model = looks(monkeypatch), models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.steps(0), estimator=Reuse())
    for _ in range(4):
        generate(call, model)
    assert found == [0] * (1 + STEPS)


@pytest.mark.parametrize("change", ["size", "prompt"])
def test_a_deep_step_after_a_change_is_not_held_against_the_one_before(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compiled graph serves both sizes."""
    found, model = looks(monkeypatch), models.make(models.SingleStream)
    options = published(lowering="eager", threshold=1e9, warmup_steps=1).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, dynamic=True, options=options)
    with generation(num_steps=STEPS), torch.no_grad():
        for at in range(STEPS):
            other = change if at > 1 else None
            latents, timestep, prompt = models.inputs(model, at, STEPS, tokens=9 if other == "size" else 7)
            call(latents, timestep, -prompt if other == "prompt" else prompt)
    assert deep(model)[:4] == [True, False, True, False]
    assert found[:3] == [0, 0, 0]


def test_a_schedule_whose_estimates_are_none_runs_uncached_under_strict() -> None:
    model = turning(5)
    call = compiled(model, schedule=Schedule.steps(0, 1, 5), estimator=Reuse(), streams=1)
    with pytest.warns(CacheWarning, match="With strict=True every step runs deep"), generation(num_steps=STEPS):
        restless(call, model)
    with generation(num_steps=STEPS):
        restless(call, model)
    decided = [
        "".join(".D"[step.deep] for step in next(iter(one.streams.values()))) for one in summary(call).generations
    ]
    assert decided == ["D" * STEPS] * 2


ADDING = [kind for kind in models.ALL if kind is not models.Skips]


def test_blocks_that_do_not_add_are_told_of() -> None:
    model = models.make(models.Skips)
    with pytest.warns(CacheWarning, match="or not add to it.*set carried='value'"):
        generate(compiled(model, warmup_steps=2, carried="auto", strict=False), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for carried in ("residual", "value"):
            other = models.make(models.Skips)
            generate(compiled(other, warmup_steps=2, carried=carried), other)


@cells("kind, config", ADDING, [{}, {"estimator": Reuse()}, {"order": 2, "probe_depth": 0}, {"feedback": 1.0}])
def test_a_right_cut_says_nothing_and_is_looked_at_twice(
    kind: type[models.Model], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[cut_check.Verdict] = []
    judge = cut_check._verdict

    def heard(*seen: Any) -> cut_check.Verdict:
        found.append(judge(*seen))
        return found[-1]

    monkeypatch.setattr(cut_check, "_verdict", heard)
    model = models.make(kind)
    call = compiled(model, warmup_steps=2, carried="auto", **config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(call, model)
    cut = sessions_of(model)[-1].last_cut
    assert len(found) == len(cut.partition.carried)
    plain = carried_of(model, len(cut.partition.carried))
    for verdict, (x, y) in zip(found, plain, strict=True):
        size = y[1].norm()
        assert verdict.reuse == pytest.approx(float((y[1] - y[0]).norm() / size), rel=1e-4)
        assert verdict.estimate == pytest.approx(float((y[1] - x[1] - y[0] + x[0]).norm() / size), rel=1e-4)
        assert not verdict.is_worse


@torch.no_grad()
def carried_of(model: models.Model, count: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    """X and y on the first two steps, of what the blocks carry."""
    found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(count)]
    for step in range(2):
        before = model.enter(*models.inputs(model, step, STEPS))
        after = model.run(dict(before), 0, model.depth)
        for (x, y), name in zip(found, ("x", "text"), strict=False):
            x.append(before[name].clone())
            y.append(after[name].clone())
    return found
