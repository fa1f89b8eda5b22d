"""The gates of the published caches, each against a few lines of plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dicache_compile import DiCacheConfig, SiteRule, explain, summary
from dicache_compile.estimators import Reuse
from dicache_compile.gates import Motion, OutputRate, Planned, PolynomialChange, ResidualChange, SpectralChange
from dicache_compile.kernels import pooled
from dicache_compile.rules import Gate
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells

pytestmark = pytest.mark.shares_traces


@dataclass
class Step:
    """What a step would see and give if it ran."""

    x: Tensor
    h: Tensor
    modulated: Tensor
    y: Tensor
    entered: dict[str, Any]


def steps_of(model: models.Model, seed: int = 0) -> list[Step]:
    found = []
    with torch.no_grad():
        for step in range(STEPS):
            entered = model.enter(*models.inputs(model, step, STEPS, seed))
            block = model.blocks[0]
            shift, scale, _ = block.modulation(functional.silu(entered["time"]))[:, None].chunk(3, dim=-1)
            modulated = block.norm(entered["x"]) * (1 + scale) + shift
            x = entered["x"].clone()
            probed = model.run({**entered, "x": x.clone()}, 0, 1)
            h = probed["x"].clone()
            found.append(Step(x, h, modulated, model.run(probed, 1, model.depth)["x"], entered))
    return found


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().mean() / b.abs().mean()).item()


def residual_change(steps: list[Step], deep: list[int], step: int) -> float:
    now, last = steps[step], steps[deep[-1]]
    return apart(now.h - now.x, last.h - last.x)


def pooled_change(steps: list[Step], deep: list[int], step: int) -> float:
    now, last = steps[step], steps[deep[-1]]
    means = [torch.stack([p[:, :4].mean(1)], 1) for p in (now.h - now.x, last.h - last.x)]
    return apart(*means)


def polynomial(steps: list[Step], deep: list[int], step: int) -> float:
    changes = [apart(steps[i].modulated, steps[i - 1].modulated) for i in range(deep[-1] + 1, step + 1)]
    return sum(3 * change**2 + 0.5 * change + 0.01 for change in changes)


def spectral(steps: list[Step], deep: list[int], step: int) -> float:
    signals = [beneath_noise(steps[i].x, 1 - i / STEPS) for i in range(deep[-1], step + 1)]
    return sum(map(apart, signals[1:], signals))


def beneath_noise(x: Tensor, sigma: float) -> Tensor:
    """The tokens as a picture of 2 x 3 through the filter, by a Fourier transform."""
    sigma, gain = min(max(sigma, 1e-6), 1 - 1e-6), torch.ones(1, 1)
    for axis, size in enumerate((2, 3)):
        power = 1 / (torch.fft.fftfreq(size).abs() ** 3 + 1e-16)
        gain = gain * ((1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)).reshape(
            (-1, 1) if axis == 0 else (1, -1)
        )
    waves = torch.fft.fft2(x.reshape(-1, 2, 3, x.shape[-1]), dim=(1, 2))
    return torch.fft.ifft2(waves * (gain / gain.mean())[..., None], dim=(1, 2)).real.reshape(x.shape)


def output_rate(steps: list[Step], deep: list[int], step: int) -> float:
    if len(deep) < 2:
        return float("inf")
    newer, older = steps[deep[-1]], steps[deep[-2]]
    k = (newer.y - older.y).abs().mean() / (newer.x - older.x).abs().mean()
    moved = sum((steps[i].x - steps[i - 1].x).abs().mean() for i in range(deep[-1] + 1, step + 1))
    return float(k * moved / newer.y.abs().mean())


def planned(steps: list[Step], deep: list[int], step: int) -> float:
    """How many steps were reused, less how many may be: below 0 it may."""
    if len(deep) < 2:
        return 0.0
    change = apart(steps[deep[-1]].y, steps[deep[-2]].y) / (deep[-1] - deep[-2])
    return (step - deep[-1] - 1) - next((count for bound, count in PLAN if change <= bound), 0)


PLAN = ((0.045, 3), (0.08, 2), (0.2, 1))
Compared = Callable[[list[Step], list[int], int], float]
CASES: list[tuple[str, Callable[[float], Gate], Compared, float]] = [
    ("residual", lambda threshold: ResidualChange(threshold), residual_change, 0.12),
    ("pooled", lambda threshold: ResidualChange(threshold, pool=4), pooled_change, 0.12),
    ("polynomial", lambda threshold: PolynomialChange((3.0, 0.5, 0.01), threshold), polynomial, 0.25),
    ("spectral", lambda threshold: SpectralChange(threshold, (1, 2, 3), 1.0), spectral, 0.25),
    (
        "spectral by steps",
        lambda threshold: SpectralChange(threshold, (1, 2, 3), tuple(1 - step / STEPS for step in range(STEPS))),
        spectral,
        0.25,
    ),
    ("output rate", lambda threshold: OutputRate(threshold), output_rate, 0.3),
    ("planned", lambda threshold: Planned(PLAN), planned, 0.0),
]


def expected(compared: Compared, steps: list[Step], threshold: float) -> tuple[list[bool], list[Tensor]]:
    """(whether each step is deep, y with the last residual on the others)."""
    deep, ran, values = list[int](), list[bool](), list[Tensor]()
    for step, now in enumerate(steps):
        ran.append(step == 0 or not compared(steps, deep, step) < threshold)
        if ran[-1]:
            deep.append(step)
        last = steps[deep[-1]]
        values.append(now.y if ran[-1] else now.x + last.y - last.x)
    return ran, values


@cells("case, engine", CASES, ["calls", "cond", "conditional"])
def test_a_gate_decides_as_its_rule_says(case: Any, engine: str) -> None:
    name, make, compared, threshold = case
    model = models.make(models.SingleStream)
    config = {"gate": make(threshold), "estimator": Reuse(), "warmup_steps": 1, "max_consecutive_skips": None}
    depth = 1 if compared in (residual_change, pooled_change) else 0
    call = compiled(model, **config, probe_depth=depth, engine=engine)
    for seed in (0, 3):  # the second generation finds nothing of the first
        steps = steps_of(model, seed)
        ran, values = expected(compared, steps, threshold)
        ours = generate(call, model, seed=seed)
        record = summary(call).generations[-1].streams["0"]
        assert [step.deep for step in record] == ran
        assert 2 < sum(ran) < STEPS - 2, f"{name}: {ran}"
        with torch.no_grad():
            assert_near(ours, [model.leave({**s.entered, "x": y}) for s, y in zip(steps, values, strict=True)])


def test_what_is_compared_is_recorded() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, gate=PolynomialChange((1.0, 0.0), 0.2), estimator=Reuse(), probe_depth=0), model)
    steps = steps_of(model)
    for index, step in enumerate(summary(model).generations[-1].streams["0"][1:], start=1):
        assert step.error == pytest.approx(apart(steps[index].modulated, steps[index - 1].modulated), rel=1e-5)


def test_no_block_runs_for_a_gate_that_looks_at_the_modulated_input() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, gate=PolynomialChange((1.0, 0.0), 0.2), estimator=Reuse(), probe_depth=0), model)
    found = explain(model)
    assert found.probe == ()
    assert len(found.deep) == model.depth


@pytest.mark.parametrize("kind", [models.TwoStream, models.Mixed])
def test_the_modulated_input_is_that_of_the_denoised_stream(kind: type[models.Model]) -> None:
    model = models.make(kind)
    config = {"gate": PolynomialChange((1.0, 0.0), 0.2), "estimator": Reuse(), "probe_depth": 0}
    generate(compiled(model, **config), model)
    block = getattr(model, "joint_blocks" if kind is models.TwoStream else "double_blocks")[0]
    seen = []
    with torch.no_grad():
        for step in range(STEPS):
            entered = model.enter(*models.inputs(model, step, STEPS))
            shift, scale, *_ = block.modulation(functional.silu(entered["time"]))[:, None].chunk(4, dim=-1)
            seen.append(block.norm(entered["x"]) * (1 + scale) + shift)
    record = summary(model).generations[-1].streams["0"]
    assert [step.error for step in record[1:]] == pytest.approx(list(map(apart, seen[1:], seen)), rel=1e-5)
    assert {step.deep for step in record[3:]} == {True, False}


@pytest.mark.parametrize("kind", [models.TwoStream, models.Mixed])
def test_the_modulated_input_is_not_the_prompts_where_that_is_as_long(kind: type[models.Model]) -> None:
    model = models.make(kind)
    config = {"gate": PolynomialChange((1.0, 0.0), 0.2), "estimator": Reuse(), "probe_depth": 0}
    generate(compiled(model, **config, apart=True), model, tokens=3)
    errors = [step.error for step in summary(model).generations[-1].streams["0"][1:]]
    assert all(error > 0 for error in errors)  # of a prompt that stays the same it would be the timestep's share alone
    block = getattr(model, "joint_blocks" if kind is models.TwoStream else "double_blocks")[0]
    with torch.no_grad():
        seen = []
        for step in range(STEPS):
            entered = model.enter(*models.inputs(model, step, STEPS, tokens=3))
            shift, scale, *_ = block.modulation(functional.silu(entered["time"]))[:, None].chunk(4, dim=-1)
            seen.append(block.norm(entered["x"]) * (1 + scale) + shift)
    assert errors == pytest.approx(list(map(apart, seen[1:], seen)), rel=1e-5)


def test_of_two_values_that_leave_a_site_the_denoised_one_alone_is_measured() -> None:
    # The prompt's change is 0, of which this polynomial makes more than of any other.
    model = models.make(models.TwoStream)
    gate = PolynomialChange((-1.0, 1.0), 2.5)
    generate(compiled(model, gate=gate, estimator=Reuse(), probe_depth=0, sites=(0, -1), apart=True), model)
    assert len(explain(model).streams) == 2
    block, seen = model.joint_blocks[0], []
    with torch.no_grad():
        for step in range(STEPS):
            entered = model.enter(*models.inputs(model, step, STEPS))
            shift, scale, *_ = block.modulation(functional.silu(entered["time"]))[:, None].chunk(4, dim=-1)
            seen.append(block.norm(entered["x"]) * (1 + scale) + shift)
    errors = [step.error for step in summary(model).generations[-1].streams["0"][1:]]
    assert errors == pytest.approx([1 - one for one in map(apart, seen[1:], seen)], rel=1e-5)


@pytest.mark.parametrize("follows", [True, False])
def test_a_rule_may_follow_the_one_before_it(follows: bool) -> None:
    model = models.make(models.SingleStream)
    common: dict[str, Any] = {"estimator": Reuse("h"), "warmup_steps": 1, "max_consecutive_skips": None}
    rules = (
        SiteRule(sites=(0, 2), gate=ResidualChange(0.12), **common),
        SiteRule(sites=(2, 4), gate=ResidualChange(0.0, follows=follows), **common),
    )
    generate(compiled(model, rules=rules), model)
    decided = [[one.deep for one in step.decisions if one] for step in summary(model).generations[-1].streams["0"]]
    assert {first for first, _ in decided} == {True, False}
    assert [second for _, second in decided] == ([first for first, _ in decided] if follows else [True] * STEPS)


def test_groups_of_tokens_are_averaged_and_a_rest_is_left_out() -> None:
    value = torch.arange(14.0).reshape(1, 7, 2)
    assert torch.equal(pooled(value, 3), torch.tensor([[[2.0, 3.0], [8.0, 9.0]]]))
    assert torch.equal(pooled(value, 3, 2), torch.tensor([[[2.5], [8.5]]]))
    assert torch.equal(pooled(value, 1, 2), pooled(value.unsqueeze(-3), 1, 2).squeeze(-3))
    assert pooled(value, 1) is value


@pytest.mark.parametrize("engine", ["calls", "conditional"])
def test_a_gate_may_measure_the_picture_alone(engine: str) -> None:
    model = models.make(models.Mixed)
    inputs, p = [], []
    with torch.no_grad():
        for step in range(STEPS):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            inputs.append((latents, timestep, (1 + step) * prompt))  # the text moves more than the picture at first
            entered = model.enter(*inputs[-1])
            x = entered["x"].clone()
            p.append(model.run(entered, 0, 1)["x"] - x)
    picture = [((a - b).abs().mean() / b.abs().mean()).item() for b, a in itertools.pairwise(p)]

    def errors(alone: bool) -> list[float]:
        gate = ResidualChange(0.0, first_alone=alone)  # all steps run deep
        call = compiled(model, sites=(0, 2), gate=gate, estimator=Reuse("h"), engine=engine)
        with torch.no_grad():
            for given in inputs:
                call(*given)
        return [step.error for step in summary(model).generations[-1].streams["0"][1:]]

    assert errors(True) == pytest.approx(picture, rel=1e-5)
    assert errors(False)[0] > 2 * picture[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualChange(0.1, pool=0), "pool: expected a number of tokens from 1 on, or two, .*, got 0"),
        (lambda: ResidualChange(0.1, pool=(2, 0)), r"of tokens and channels, got \(2, 0\)"),
        (lambda: PolynomialChange((), 0.1), "coefficients: expected finite numbers, one at least"),
        (lambda: PolynomialChange((float("nan"),), 0.1), "coefficients: expected finite numbers"),
        (lambda: SpectralChange(0.1, (2, 3)), r"grid: expected \(frames, rows, columns\), .* got \(2, 3\)"),
        (lambda: SpectralChange(0.1, (1, 2, 3), 0.0), "sigma: expected a finite timestep above 0, .* got 0.0"),
        (lambda: SpectralChange(0.1, (1, 2, 3), (1.0, 1.5)), "sigma: expected a number from 0 to 1 for each step"),
        (lambda: Planned(()), "plan: expected pairs"),
        (lambda: Planned(((0.2, 1), (0.1, 2))), "with rising bounds"),
        (lambda: Planned(((0.2, -1),)), "whole numbers of reused steps from 0 on"),
        (
            lambda: Planned(((0.2, 1),), of=-1),
            "of: expected 'first', 'all' or .* from 0 on, got -1",
        ),
        (lambda: Motion(0), r"frame_tokens, strides: expected whole numbers from 1 on, got \(0, 1\)"),
        (lambda: Motion(4, strides=()), "frame_tokens, strides: expected whole numbers"),
        (lambda: Motion(4, level=0.0), "level, power, slope: expected numbers above 0"),
        (lambda: Motion(4, steps=(5, 4)), r"steps: expected the first and the last one, .* got \(5, 4\)"),
        (lambda: Planned(((0.2, 1),), half_of=True), "half_of: expected a whole number of steps from 1 on, got True"),
        (
            lambda: DiCacheConfig(gate=PolynomialChange((1.0,), 0.1), estimator=Reuse()),
            "looks at the first block's modulated input: it needs probe_depth=0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@dataclass
class PlainBlocks:
    """BWCache by its equations in plain PyTorch: the mean change of all blocks' results, and the last half deep."""

    model: models.Model
    threshold: float
    reused: int
    steps: int
    outputs: list[Tensor] | None = None
    left: int = 0  # steps that may still be reused
    first: int | None = None  # the step at which a plan was made for the first time
    ran: str = ""

    def __call__(self, step: int, *inputs: Any) -> Tensor:
        carried = self.model.enter(*inputs)
        late = self.first is not None and step >= self.steps - self.first / 2
        if self.outputs is not None and self.left > 0 and not late:
            self.left, self.ran = self.left - 1, self.ran + "0"
            return self.model.leave({**carried, "x": self.outputs[-1]})
        outputs = []
        for block in range(self.model.depth):
            carried = self.model.run(carried, block, block + 1)
            outputs.append(carried["x"].clone())
        self.left = 0
        if self.outputs is not None:
            changes = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(outputs, self.outputs, strict=True)]
            if float(sum(changes) / len(changes)) <= self.threshold:
                self.left = self.reused
                self.first = step if self.first is None else self.first
        self.outputs, self.ran = outputs, self.ran + "1"
        return self.model.leave(carried)


@pytest.mark.parametrize("engine", ["calls", "conditional"])
@torch.no_grad()
def test_bwcache_goes_by_the_mean_of_all_blocks_and_ends_deep(engine: str) -> None:
    model, steps = models.make(models.SingleStream, depth=5), 20
    moved = [models.inputs(model, step if step > 4 else 3 * step, steps) for step in range(steps)]
    changes, before = [], None
    for inputs in moved:  # what a run without a cache would measure
        plain = PlainBlocks(model, 0.0, 2, steps, outputs=before)
        plain(0, *inputs)
        if before is not None:
            pairs = zip(plain.outputs or [], before, strict=True)
            changes.append(float(sum((a - b).abs().mean() / b.abs().mean() for a, b in pairs) / 5))
        before = plain.outputs
    threshold = sorted(changes)[len(changes) // 2]
    threshold += 0.01 * threshold  # beside the number, not on it
    fields: dict[str, Any] = {"lowering": "eager", "strict": True, "engine": engine}
    config = DiCacheConfig.preset("bwcache", threshold=threshold, reused=2, blocks=5, num_steps=steps, **fields)
    call = compiled(model, **{name: value for name, value in config.options().items() if name != "rules"})
    oracle = PlainBlocks(model, threshold, 2, steps)
    for _ in range(2):  # nothing is left of the first generation
        oracle.outputs, oracle.left, oracle.first, oracle.ran = None, 0, None, ""
        for step, inputs in enumerate(moved):
            assert_near([call(*inputs)], [oracle(step, *inputs)])
        record = summary(model).generations[-1].streams["0"]
        assert "".join("01"[one.deep] for one in record) == oracle.ran
    assert oracle.first is not None
    assert oracle.first >= 4
    assert "0" in oracle.ran
    assert oracle.ran.endswith("1" * (oracle.first // 2))
