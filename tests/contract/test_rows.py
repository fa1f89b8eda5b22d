"""Rows that decide for themselves: each is what it is alone, whatever the rest of the batch does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from dicache_compile import Schedule, dicache_backend, estimators, gates, reset, stream, summary
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import ENGINES, assert_near, compiled
from tests.contract.test_equivalence import property_of
from tests.helpers.cells import cells
from tests.helpers.published import published, published_rule
from tests.oracles.plain_oracle import PlainDiCache
from tests.oracles.row_oracle import PlainRows
from zoo.entry import Entry

pytestmark = pytest.mark.shares_traces
STEPS = 12


@dataclass(frozen=True)
class Course:
    """What a row does: which generation it is in on each call, and how far."""

    seeds: tuple[int, ...]  # of each call's generation
    steps: tuple[int, ...]  # from 0 in each generation
    of: int = STEPS  # steps of a whole generation

    @property
    def begins(self) -> list[bool]:
        return [step == 0 for step in self.steps]


def course(lengths: Sequence[int], seed: int, of: int = STEPS) -> Course:
    """Generations of these lengths, one after the other, for as many calls as there are steps in all."""
    seeds = tuple(seed + number for number, length in enumerate(lengths) for _ in range(length))
    return Course(seeds, tuple(step for length in lengths for step in range(length)), of)


def batch(model: models.Model, courses: Sequence[Course], call: int, **sizes: int) -> tuple[Any, ...]:
    """The arguments of one call, with a row for each course."""
    rows = [models.inputs(model, one.steps[call], one.of, seed=one.seeds[call], batch=1, **sizes) for one in courses]
    return tuple(together(parts) for parts in zip(*rows, strict=True))


def together(parts: Sequence[Any]) -> Any:
    return (
        torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [torch.cat(one) for one in zip(*parts, strict=True)]
    )


@torch.no_grad()
def run(call: Any, model: models.Model, courses: Sequence[Course], **sizes: int) -> list[Tensor]:
    return [call(*batch(model, courses, number, **sizes)) for number in range(len(courses[0].steps))]


@torch.no_grad()
def run_alone(oracle: PlainRows, model: models.Model, courses: Sequence[Course], **sizes: int) -> list[Tensor]:
    begins = zip(*(one.begins for one in courses), strict=True)
    return [oracle(begin, *batch(model, courses, number, **sizes)) for number, begin in enumerate(begins)]


def deep_steps(model: Any, rows: int, name: str = "0") -> list[list[bool]]:
    """Whether each row needed the deep blocks, step by step."""
    did = summary(model).generations
    return [[s.deep for one in did for s in one.streams.get(f"{name}[{row}]", ())] for row in range(rows)]


def typical(model: models.Model, courses: Sequence[Course], **rule: Any) -> float:
    """An error that about half of the rows' steps have."""
    dense = PlainRows(lambda: PlainDiCache(model, 0.0, **rule))
    run_alone(dense, model, courses)
    errors = [e for row in dense.done for one in row for e in one.errors if e is not None]
    return sorted(errors)[len(errors) // 2]


MIXED = (course((7, 5), 1), course((3, 9), 11), course((12,), 21))


@cells("kind, engine", (models.Mixed, *(kind for kind in models.ALL if kind is not models.Mixed)), ENGINES)
def test_each_row_decides_and_estimates_as_the_oracle_does_alone(kind: type[models.Model], engine: str) -> None:
    model = models.make(kind)
    threshold = 2.5 * typical(model, MIXED)
    call = compiled(model, rows="independent", threshold=threshold, engine=engine)
    oracle = PlainRows(lambda: PlainDiCache(model, threshold, max_skips=3))
    assert_near(run(call, model, MIXED), run_alone(oracle, model, MIXED))
    found = deep_steps(model, len(MIXED))
    assert found == [oracle.deep(row) for row in range(len(MIXED))]
    assert len({tuple(one) for one in found}) == len(MIXED), "rows that all do the same show nothing"


def alone(model: models.Model, courses: Sequence[Course], **config: Any) -> tuple[list[Tensor], list[list[bool]]]:
    """What each row gives, and when it runs deep, as a batch of one in a stream of its own."""
    call = compiled(model, **config)
    results = []
    for row, one in enumerate(courses):
        with stream(f"alone {row}"):
            results.append(run(call, model, [one]))
    did = summary(call).generations
    deep = [[s.deep for one in did for s in one.streams.get(f"alone {row}", ())] for row in range(len(courses))]
    return [torch.cat(rows) for rows in zip(*results, strict=True)], deep


def mates(courses: Sequence[Course], row: int) -> list[Course]:
    """A row in its place, among others that do something else."""
    calls = len(courses[row].steps)
    others = [course((2, calls - 2), 500), course((calls // 2, calls - calls // 2), 600), course((calls,), 700)]
    return [one if place == row else others[place % 3] for place, one in enumerate(courses)]


RULES: dict[str, dict[str, Any]] = {
    "default": {"error": None, "order": None, "gamma_range": None, "threshold": 0.3},
    "float8": {"state_dtype": torch.float8_e4m3fn, "threshold": 0.4},
    "feedback": {"feedback": 0.5, "threshold": 0.4, "gamma_range": (1.0, 4.0)},
    "probe_minus_input": {"error": "probe_minus_input", "threshold": 0.2},
    "residual change": {"gate": gates.ResidualChange(0.2, pool=2), "estimator": Reuse(base="h")},
    "polynomial": {"gate": gates.PolynomialChange((0.5, 1.0, 0.0), 0.4), "probe_depth": 0, "estimator": Reuse()},
    "output rate": {"gate": gates.OutputRate(0.2), "probe_depth": 0, "sites": "model", "estimator": Reuse()},
    "planned": {"gate": gates.Planned(((0.05, 3), (0.2, 1))), "probe_depth": 0, "estimator": Reuse()},
    "moving": {
        "gate": gates.Planned(((0.05, 3), (0.2, 1)), residual=True, motion=gates.Motion(2, steps=(1, 9), level=1.0)),
        "probe_depth": 0,
        "estimator": Reuse(),
    },
    "salient": {"gate": gates.SalientChange(0.8, (1, 2, 3)), "estimator": Reuse()},
    "draft": {
        "gate": gates.DraftError(0.5, 12, decay=0.5, least=1),
        "estimator": estimators.Checked(estimators.Taylor(order=1)),
    },
    "spectral": {"gate": gates.SpectralChange(0.4, (1, 2, 3), 1.0), "probe_depth": 0, "estimator": Reuse()},
    "taylor": {"estimator": estimators.Taylor(order=2), "threshold": 0.5},
    "newton": {"estimator": estimators.Newton(order=2, times="timesteps"), "threshold": 0.5},
    "hermite": {"estimator": estimators.Hermite(order=2), "threshold": 0.5},
    "bands": {"estimator": estimators.BandSplit(order=2, grid=(2, 3)), "threshold": 0.5},
    "adams": {"estimator": estimators.AdamsBashforth(), "threshold": 0.5},
    "foca": {"estimator": estimators.FoCa(), "threshold": 0.5},
    "projected": {"estimator": estimators.ProjectedDCTA((0.2, 1.8)), "threshold": 0.5},
    "second order": {"order": 2, "error": "estimate", "gamma_range": (1.0, 2.0), "threshold": 0.4},
    "extrapolated": {"estimator": estimators.Extrapolated((0.2, 0.5, 0.7)), "threshold": 0.5},
    "spectrum": {"estimator": estimators.Spectrum(), "threshold": 0.5},
    "hyca": {"estimator": estimators.HyCa(("taylor", "ab2"), (0, 1) * 8), "threshold": 0.5},
    "step affine": {"estimator": estimators.StepAffine((0.9,) * STEPS, (0.01,) * STEPS), "threshold": 0.5},
    "learned": {
        "schedule": Schedule.every(2),
        "estimator": estimators.LearnedTable(tuple(range(0, STEPS, 2)), ((1.0,),) * STEPS),
    },
    "schedule": {"schedule": Schedule.every(3), "estimator": estimators.Taylor(order=1)},
    "tokens": {"sites": "mlp", "schedule": Schedule.every(3), "estimator": estimators.Tokens(0.5)},
    "two ranges": {"sites": ((0, 3), (3, 6)), "threshold": 0.4},
    "two rules": {
        "rules": (
            published_rule(sites=(0, 3), threshold=0.4),
            published_rule(sites=(3, 6), threshold=0.15, gate=None),
        )
    },
    "one inside of another": {
        "rules": (
            published_rule(sites=(0, 6), threshold=0.1),
            published_rule(sites=(2, 5), threshold=0.6, warmup_steps=1),
        )
    },
}


@pytest.mark.parametrize("rule", RULES)
def test_each_row_is_to_the_last_bit_what_it_is_among_others_and_decides_as_alone(rule: str) -> None:
    model = models.make(models.SingleStream, depth=6)
    config = RULES[rule]
    call = compiled(model, rows="independent", **config)
    ours = run(call, model, MIXED)
    found = deep_steps(model, len(MIXED))
    theirs, deep = alone(model, MIXED, **config)
    assert found == deep
    for one, another in zip(ours, theirs, strict=True):
        # A matrix product of another batch adds up in another order. Lagrange's weights of three anchors, three steps
        # out, are 10, -15 and 6, and multiply that.
        assert (one - another).abs().max() <= 31 * 16 * torch.finfo(one.dtype).eps * another.abs().max()
    other = run(call, model, mates(MIXED, 1))
    for one, another in zip(ours, other, strict=True):
        assert torch.equal(one[1], another[1])
    assert len({tuple(one) for one in found}) > 1, "rows that all do the same show nothing"
    assert any(not all(one) for one in found), "nothing was reused"


@st.composite
def cases(draw: st.DrawFn) -> tuple[models.Model, dict[str, Any], list[Course], int]:
    """A model, a config without its threshold, what each row does, and which of them is looked at."""
    kind, dtype = draw(st.sampled_from(models.ALL)), draw(st.sampled_from([torch.float32, torch.bfloat16]))
    model = models.make(kind, dtype, depth=draw(st.integers(2, 4)))
    probe = draw(st.integers(0, 1))
    order = draw(st.sampled_from([1, 2]))
    config = {
        "probe_depth": probe,
        "warmup_steps": draw(st.integers(0, 3)),
        "max_consecutive_skips": draw(st.one_of(st.none(), st.integers(0, 3))),
        "error": draw(st.sampled_from(["probe", "probe_minus_input", *["estimate"] * probe])),
        "order": order,
        "feedback": draw(st.sampled_from([0.0, 0.5, 1.0])) if order == 1 else 0.0,
        "final_steps": draw(st.integers(0, 2)),
        "deep_steps": tuple(sorted(draw(st.sets(st.integers(0, STEPS - 1), max_size=2)))),
        "num_steps": STEPS,
        "joint": draw(st.booleans()),
    }
    lengths = st.sampled_from([(STEPS,), (4, 8), (7, 5), (2, 10), (3, 4, 5)])
    courses = [course(draw(lengths), 10 * row + draw(st.integers(0, 3))) for row in range(draw(st.integers(1, 4)))]
    return model, config, courses, draw(st.integers(0, len(courses) - 1))


@pytest.mark.filterwarnings("ignore::dicache_compile.errors.CacheWarning")  # that much is reused
@property_of(12)
@given(cases(), st.sampled_from([0.0, 0.5, 1.0, 2.5, math.inf]))
def test_random_rows_are_what_they_are_among_any_others(
    case: tuple[models.Model, dict[str, Any], list[Course], int], share: float
) -> None:
    model, config, courses, row = case
    kept = {"carried": "residual"} if isinstance(model, models.Skips) else {}
    rule = {name: config[name] for name in ("error", "order", "feedback", "probe_depth")}
    threshold = share * typical(model, courses, **rule) if 0 < share < math.inf else share
    call = compiled(model, rows="independent", threshold=threshold, **kept, **config)
    ours = run(call, model, courses)
    found = deep_steps(model, len(courses))
    steps = [s for one in summary(model).generations for row_ in one.streams.values() for s in row_]
    compared = [s.accumulated for s in steps if s.accumulated is not None]
    reset(call)
    other = run(call, model, mates(courses, row))
    for one, another in zip(ours, other, strict=True):
        assert torch.equal(one[row], another[row])
    assert deep_steps(model, len(courses))[row][-STEPS:] == found[row]
    oracle = PlainRows(
        lambda: PlainDiCache(
            model,
            threshold,
            warmup=config["warmup_steps"],
            max_skips=config["max_consecutive_skips"],
            last_forced=STEPS - config["final_steps"] if config["final_steps"] else None,
            deep_steps=config["deep_steps"],
            **rule,
        )
    )
    theirs = run_alone(oracle, model, courses)
    # The sums of a batch may be rounded to the other side of a threshold that is as near.
    assume(all(abs(one - threshold) > 4 * torch.finfo(theirs[0].dtype).eps * max(one, 1e-3) for one in compared))
    assert found == [oracle.deep(number) for number in range(len(courses))]
    for one, another in zip(ours, theirs, strict=True):
        assert (one - another).abs().max() <= 64 * torch.finfo(one.dtype).eps * another.abs().max()


class Exact(nn.Module):
    """Blocks whose every sum is of a row's own numbers, in one order whatever the batch: no matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ExactBlock(0.3 + 0.1 * number) for number in range(4))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        x = latents * 1.5
        for block in self.blocks:
            x = block(x, timestep)
        return x * 0.5


class ExactBlock(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        mixed = torch.sin(x.roll(1, dims=1) * self.scale) * x.roll(2, dims=2)
        return x + self.scale * mixed * timestep.cos()[:, None, None]


def exact_inputs(one: Course, call: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(one.seeds[call])
    start, drift = (torch.randn(1, 6, 4, generator=generator) for _ in range(2))
    share = one.steps[call] / one.of
    return start + share * drift, torch.tensor([1 - share])


def test_where_the_model_itself_is_exact_a_row_is_to_the_last_bit_a_batch_of_one() -> None:
    model = Exact()
    call = compiled_apart(model, rows="independent")
    single = compiled_apart(model, rows="together", joint=False)
    with torch.no_grad():
        ours = [
            call(*(torch.cat(parts) for parts in zip(*(exact_inputs(one, number) for one in MIXED), strict=True)))
            for number in range(STEPS)
        ]
        found = deep_steps(call, len(MIXED))
        for row, one in enumerate(MIXED):
            reset(single)
            for number in range(STEPS):
                assert torch.equal(single(*exact_inputs(one, number))[0], ours[number][row])
            steps = [step.deep for did in summary(single).generations for step in did.streams["0"]]
            assert steps[-STEPS:] == found[row]
    assert len({tuple(one) for one in found}) == len(MIXED)


def compiled_apart(model: nn.Module, **config: Any) -> Any:
    found = published(lowering="eager", strict=True, threshold=0.15, trunk="blocks", carried="residual", **config)
    return torch.compile(model, backend=dicache_backend, fullgraph=True, options=found.options())


# Of each model's arguments those that have a row for each sample.
OF_ROWS = {
    "flux": ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance"),
    "wan22": ("hidden_states", "encoder_hidden_states", "timestep"),
}


def zoo_batch(entry: Entry, courses: Sequence[Course], number: int) -> dict[str, Any]:
    """The arguments of one call of a model of the zoo, with a row for each course."""
    rows = []
    for one in courses:
        call = entry.at_step(one.steps[number], one.of)
        generator = torch.Generator().manual_seed(one.seeds[number])
        for name in ("hidden_states", "encoder_hidden_states"):
            call[name] = call[name] + 0.5 * torch.randn(call[name][:1].shape, generator=generator)
        rows.append(call)
    batched = {name: torch.cat([row[name][:1] for row in rows]) for name in OF_ROWS[entry.name] if name in rows[0]}
    return {**rows[0], **batched}


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_of_a_model_of_diffusers_are_what_they_are_among_any_others(name: str) -> None:
    pytest.importorskip("zoo.more_b", exc_type=ImportError, reason="the zoo has classes of diffusers 0.42")
    entry = zoo.entries()[name]
    model = entry.build()
    fields = {**entry.config, "lowering": "eager", "warmup_steps": 1, "threshold": 0.05, "max_consecutive_skips": None}
    options = published(rows="independent", **fields).options()
    call = torch.compile(model, backend=dicache_backend, options=options, fullgraph=True, dynamic=False)
    outputs = []
    with torch.no_grad():
        for courses in (MIXED, mates(MIXED, 1)):
            reset(call)
            outputs.append([call(**zoo_batch(entry, courses, number))[0] for number in range(STEPS)])
    for one, another in zip(*outputs, strict=True):
        assert torch.equal(one[1], another[1])
        assert not torch.equal(one[0], another[0])
    found = deep_steps(call, len(MIXED))
    assert found[1][:STEPS] == found[1][STEPS:]
    assert len({tuple(one[:STEPS]) for one in found}) > 1, "rows that all do the same show nothing"
    assert not all(found[1])
