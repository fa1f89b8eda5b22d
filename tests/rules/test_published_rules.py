"""Our gates and estimators give what the published codes gave, on the inputs of `published/`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, summary
from dicache_compile.estimators import (
    BandSplit,
    Extrapolated,
    GuidanceDifference,
    Hermite,
    MeanVelocity,
    ProjectedDCTA,
    Reuse,
    Spectrum,
    Taylor,
    Tokens,
)
from dicache_compile.gates import (
    DraftError,
    Motion,
    OutputRate,
    Planned,
    PolynomialChange,
    ResidualChange,
    SalientChange,
    SpectralChange,
)
from dicache_compile.kernels.bands import low_of_grid, low_of_sequence, wiener
from dicache_compile.planning import growing, tapered
from dicache_compile.published import published
from dicache_compile.rules import Gate, Seen
from tests.helpers.facts import first_block, fixture, smooth, tiny_model, turning, values
from tests.helpers.replay import Replayed, replay, run

# Ours compute in float32: values of about 1, each rounded a few times by 2**-24, and weights of up to some tens in sum.
NEAR = {"rtol": 0.0, "atol": 64 * 2.0**-24}
# With a transform of 48 numbers and back in float32 on either side: about 8 roundings each, of values of up to 4.
GROWN = 256 * 2.0**-24
# Of what is compared: sums of some hundred float32 numbers, and polynomials of them with coefficients of up to 800.
COMPARED = 2e-4


def near(ours: Tensor, flat: list[float], atol: float = NEAR["atol"]) -> None:
    expected = values(flat, tuple(ours.shape))
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(ours.double(), expected, rtol=0.0, atol=atol * scale)


def computed(digits: str) -> list[int]:
    return [step for step, digit in enumerate(digits) if digit == "1"]


def turned(of: Callable[[Tensor], Tensor], steps: int) -> Callable[[int], Tensor]:
    return functools.cache(lambda step: of(turning(step, steps)).float())


def driven(gate: Gate, base: Any, steps: int, forced: Any, look: Callable[[Tensor], Tensor] | None = None) -> Replayed:
    """A run on the tiny model; `look`: what makes h of x."""
    x, y = turned(lambda x: x, steps), turned(tiny_model, steps)
    return run(gate, Reuse(base), y, forced, steps, x=x, h=turned(look or first_block, steps))


@pytest.mark.parametrize("case", fixture("taylorseer")["runs"], ids=lambda one: f"{one['order']}-{one['first']}")
def test_taylorseer(case: dict[str, Any]) -> None:
    estimator = Taylor(case["order"], first=case["first"])
    ours = replay(estimator, lambda step: smooth(step).float(), computed(case["computed"]), case["steps"])
    for step, flat in case["estimates"].items():
        near(ours[int(step)], flat)


@pytest.mark.parametrize("case", fixture("fbcache")["runs"], ids=lambda one: str(one["threshold"]))
def test_first_block_cache(case: dict[str, Any]) -> None:
    ours = driven(ResidualChange(case["threshold"]), "h", case["steps"], (0,))
    assert ours.computed(case["steps"]) == case["computed"]
    for step, distance in ours.compared.items():
        assert distance == pytest.approx(case["distances"][step], rel=COMPARED)
    for step, flat in case["outputs"].items():
        near(ours.estimates[int(step)], flat)


# A limit of the sum over a generation, which the last run has, is not built.
@pytest.mark.parametrize("case", fixture("dbcache")["runs"][:-1], ids=lambda one: str(one["max_continuous"]))
def test_dbcache(case: dict[str, Any]) -> None:
    steps, expected, most = case["steps"], case["computed"], case["max_continuous"]
    full = [step for step in range(steps) if most > 0 and expected[:step].endswith("0" * most)]
    ours = driven(ResidualChange(case["threshold"]), "h", steps, {*range(case["warmup"]), *full})
    assert ours.computed(steps) == expected
    for step, flat in case["outputs"].items():
        near(ours.estimates[int(step)], flat)


@pytest.mark.parametrize("case", fixture("adacache")["runs"], ids=lambda one: str(one["codebook"][0]))
def test_adacache(case: dict[str, Any]) -> None:
    *pairs, (_, beyond) = case["codebook"]
    plan = (*((bound, interval - 1) for bound, interval in pairs), (math.inf, beyond - 1))
    steps = case["steps"]
    ours = run(Planned(plan), Reuse(), turned(lambda x: x, steps), {0, steps - 2, steps - 1}, steps)
    assert ours.computed(steps) == case["computed"]


@pytest.mark.parametrize("case", fixture("adacache")["moving"], ids=lambda one: f"{one['steps']}-{one['strides']}")
def test_adacache_with_motion(case: dict[str, Any]) -> None:
    *pairs, (_, beyond) = case["codebook"]
    plan = (*((bound, interval - 1) for bound, interval in pairs), (math.inf, beyond - 1))
    motion = Motion(case["frame_tokens"], steps=tuple(case["motion_steps"]), strides=tuple(case["strides"]))
    steps, y = case["steps"], turned(lambda x: x, case["steps"])
    for step, _, moves, _ in case["looked_up"]:
        assert motion.measure(y(step), torch.tensor(step)).item() == pytest.approx(moves, rel=COMPARED)
    gate = Planned(plan, residual=True, motion=motion)  # of x = 0
    ours = run(gate, Reuse(), y, {0, steps - 2, steps - 1}, steps)
    assert ours.computed(steps) == case["computed"]


@pytest.mark.parametrize("case", fixture("pab")["runs"], ids=lambda one: str(one["range"]))
def test_pyramid_attention_broadcast(case: dict[str, Any]) -> None:
    steps, deep = case["steps"], computed(case["computed"])
    low, high = (1 - timestep / 1000 for timestep in case["window"])
    config = DiCacheConfig.preset("pab", attention=case["range"], num_steps=steps, window=(high, low))
    assert config.schedule == Schedule.table(Schedule.steps(*deep))
    ours = replay(Reuse(), turned(lambda x: torch.sin(x) + 0.5 * x, steps), deep, steps)
    for step, flat in case["outputs"].items():
        near(ours[int(step)], flat)


@pytest.mark.parametrize("case", fixture("teacache")["runs"], ids=lambda one: f"{one['model']}-{one['threshold']}")
def test_teacache(case: dict[str, Any]) -> None:
    name = {"FLUX": "flux-dev", "HunyuanVideo": "hunyuan-video"}[case["model"]]
    coefficients = published("teacache")["models"][name]["coefficients"]
    steps = case["steps"]
    gate = PolynomialChange(tuple(coefficients), case["threshold"])
    ours = driven(gate, "x", steps, (0, steps - 1), look=lambda x: x)
    assert ours.computed(steps) == case["computed"]
    for step, total in enumerate(case["accumulated"]):
        if case["computed"][step] == "0":
            assert ours.compared[step] == pytest.approx(total, rel=COMPARED)
    for step, flat in case["outputs"].items():
        near(ours.estimates[int(step)], flat)
    assert all(math.isfinite(total) for total in ours.compared.values())


@pytest.mark.parametrize("case", fixture("flowcache")["runs"], ids=lambda one: f"{one['threshold']}-{one['warmup']}")
@pytest.mark.parametrize("chunk", range(4))
def test_flowcache(case: dict[str, Any], chunk: int) -> None:
    steps = case["steps"]
    # A chunk has been denoised two steps less than the one before it; the first and the last step are computed whole.
    warm = [step for step in range(steps) if max(0, step - 2 * chunk) < case["warmup"]]

    def x(step: int) -> Tensor:
        return turning((1 + 0.35 * chunk) * step, steps).float()

    gate = DiCacheConfig.preset("flowcache", threshold=case["threshold"]).gate
    assert isinstance(gate, Gate)
    ours = run(gate, Reuse(), lambda step: tiny_model(x(step)), {0, steps - 1, *warm}, steps, x=x, h=x)
    assert ours.computed(steps) == case["computed"][f"chunk {chunk}"]
    for step in ours.estimates:
        assert ours.compared[step] == pytest.approx(case["accumulated"][step][chunk], rel=COMPARED)


class _Profiled(torch.nn.Module):
    """The 40 blocks on which ProfilingDiT's code was run, with a linear that changes nothing, and two others before."""

    def __init__(self) -> None:
        super().__init__()
        self.doubles = torch.nn.ModuleList(_Wave(0.0, 0.0, 0.0) for _ in range(2))
        self.singles = torch.nn.ModuleList(_Wave(0.02, 1 + 0.05 * place, 0.1 * place) for place in range(40))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        x = latents + 0.0 * timestep
        for block in (*self.doubles, *self.singles):
            x = block(x)
        return x + 0.0


class _Wave(torch.nn.Module):
    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.tensor(numbers), requires_grad=False)
        self.same = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.same.weight.copy_(torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        size, fast, beyond = self.numbers
        return x + size * torch.sin(self.same(x) * fast + beyond)


@pytest.mark.parametrize("case", fixture("profilingdit")["runs"])
@torch.no_grad()
def test_profilingdit(case: dict[str, Any]) -> None:
    steps, known = case["steps"], published("profilingdit")["models"]["hunyuan-video"]
    ranges = tuple((first, last + 1) for first, last in known["ranges"])
    assert [block for first, last in ranges for block in range(first, last)] == case["left_out"]
    fields: dict[str, Any] = {"trunk": ("doubles", "singles"), "num_steps": steps, "lowering": "eager", "strict": True}
    deep = tuple(computed(case["computed"]))
    config = DiCacheConfig.preset("profilingdit", ranges=ranges, deep_steps=deep, before=2, **fields)
    model = _Profiled().eval()
    call = torch.compile(model, backend=dicache_backend, options=config.options())
    for step in range(steps):
        out = call(turning(step, steps).float(), torch.tensor(1 - step / steps))
        if str(step) in case["outputs"]:
            near(out, case["outputs"][str(step)])
    (record,) = summary(model).generations[-1].streams.values()
    assert "".join("01"[one.deep] for one in record) == case["computed"]


@pytest.mark.parametrize("case", fixture("easycache")["runs"], ids=lambda one: f"{one['model']}-{one['threshold']}")
def test_easycache(case: dict[str, Any]) -> None:
    steps = case["steps"]
    forced = (*range(case["first"]), *range(steps - case["last"], steps))
    ours = driven(OutputRate(case["threshold"]), "x", steps, forced, look=lambda x: x)
    assert ours.computed(steps) == case.get("computed", case.get("computed_cond"))
    for step, total in enumerate(case["accumulated"]):
        if step in ours.estimates:
            assert ours.compared[step] == pytest.approx(total, rel=COMPARED)
    for step, flat in case["outputs"].items():
        near(ours.estimates[int(step)], flat)


@pytest.mark.parametrize("case", fixture("hicache")["runs"], ids=lambda one: f"{one['order']}-{one['sigma']}")
def test_hicache(case: dict[str, Any]) -> None:
    estimator = Hermite(case["order"], scale=case["sigma"])
    ours = replay(estimator, lambda step: smooth(step).float(), computed(case["computed"]), case["steps"])
    for step, flat in case["estimates"].items():
        near(ours[int(step)], flat)


@pytest.mark.parametrize(
    "case", fixture("freqca")["runs"], ids=lambda one: f"{one['transform']}-{one['shape'][1]}-{one['interval']}"
)
def test_freqca(case: dict[str, Any]) -> None:
    shape, deep = tuple(case["shape"]), computed(case["computed"])
    side = math.isqrt(shape[1])
    grid = (side, side) if case["transform"] == "DCT" else None
    assert Schedule.every(case["interval"], after=case["first"]).deep_steps(case["steps"]) == tuple(deep)
    estimator = BandSplit(2, first=case["first"], grid=grid)
    ours = replay(estimator, lambda step: smooth(step, shape).float(), deep, case["steps"])
    for step, flat in case["estimates"].items():
        near(ours[int(step)], flat)
    if "low_band_of_step_5" in case:
        value = smooth(5, shape)
        near(low_of_grid(value, grid, 0.1) if grid else low_of_sequence(value, 0.1), case["low_band_of_step_5"])


@pytest.mark.parametrize(
    "case", fixture("seacache")["runs"], ids=lambda one: f"{one['threshold']}-{one['residual_order']}"
)
def test_seacache(case: dict[str, Any]) -> None:
    steps, shape = case["steps"], tuple(fixture("seacache")["shape"])
    x = functools.cache(lambda step: turning(step, steps, shape).float())
    y = functools.cache(lambda step: tiny_model(turning(step, steps, shape)).float())
    expected, most = case["computed"], case["max_consecutive"]
    forced = [step for step in range(steps) if most and expected[:step].endswith("0" * most)]
    gate, estimator = SpectralChange(case["threshold"], (2, 3, 2)), Taylor(case["residual_order"])
    ours = run(gate, estimator, y, {0, steps - 1, *forced}, steps, x=x, time=lambda step: 1000 * (1 - step / steps))
    assert ours.computed(steps) == expected
    for step, total in enumerate(case["accumulated"]):
        if step in ours.estimates:
            assert ours.compared[step] == pytest.approx(total, rel=COMPARED)
    for step, flat in case["outputs"].items():
        near(ours.estimates[int(step)], flat)


@pytest.mark.parametrize("sigma", fixture("seacache")["filtered"])
def test_the_filter_of_seacache(sigma: str) -> None:
    value = turning(3, 30, tuple(fixture("seacache")["shape"]))
    near(wiener(value, (2, 3, 2), torch.tensor(float(sigma))), fixture("seacache")["filtered"][sigma])


@pytest.mark.parametrize(
    "case", fixture("spectrum")["runs"], ids=lambda one: f"{one['numbers']}-{one['w']}-{one['flex_window']}"
)
def test_spectrum(case: dict[str, Any]) -> None:
    steps = case["steps"]
    schedule = growing(steps, first=case["warmup_steps"], window=case["window_size"], growth=case["flex_window"])
    deep = computed(case["computed"])
    assert schedule == Schedule.steps(*deep)
    ours = replay(Spectrum(case["M"], case["lam"], case["w"]), lambda step: smooth(step).float(), deep, steps)
    for step, flat in case["estimates"].items():
        if case["numbers"] == "float32":
            near(ours[int(step)], flat)
        else:
            # There times, coefficients and what is made of them are rounded by 2**-9 each.
            near(ours[int(step)], flat, 8 * 2.0**-9)


@pytest.mark.parametrize("case", fixture("h2cache")["runs"], ids=lambda one: f"{one['first']}-{one['second']}")
def test_h2cache(case: dict[str, Any]) -> None:
    """Both stages by hand, on all that the published code measures: text and picture are one value in the second."""
    steps = case["steps"]
    rules = DiCacheConfig.preset("h2cache", first=case["first"], second=case["second"], pools=(2, 6)).rules
    stacks = [_Stack(rule.gate) for rule in rules]
    for step in range(steps):
        x, e = turning(step, steps, (1, 8, 6)).float(), turning(0.6 * step + 2, steps, (1, 4, 6)).float()
        h, text = x + 0.3 * torch.sin(x) + 0.05 * e.mean(), e + 0.2 * torch.cos(e) + 0.05 * x.mean()
        given = torch.cat((text, h), dim=1)  # of which the gate sees the picture
        after = torch.cat((text - 0.1 * torch.sin(text), h + 0.1 * h.square() + 0.02 * text.mean()), dim=1)
        joined = stacks[0].step(x, h, given, after, before=False)
        h = joined + 0.25 * torch.cos(1.3 * joined)
        out = stacks[1].step(joined, h, h, h + 0.05 * h.square(), before=not stacks[0].deep[-1])
        if (flat := case["outputs"].get(str(step))) is not None:
            near(out[:, 4:], flat)
    for name, stack in zip(("double", "single"), stacks, strict=True):
        assert "".join("01"[deep] for deep in stack.deep) == case[f"computed_{name}"]


class _Stack:
    """A stack of blocks behind a gate: `Reuse("h")` stands in for those after the first."""

    def __init__(self, gate: Any) -> None:
        self.gate, self.deep, self.kept, self.residual = gate, list[bool](), dict[str, Tensor](), torch.zeros(())

    def step(self, x: Tensor, h: Tensor, given: Tensor, after: Tensor, before: bool) -> Tensor:
        number = torch.tensor(len(self.deep))
        count = {"index": number, "time": number.float(), "anchors": number, "since": number}
        told = {one.name: torch.tensor(one.value) for one in self.gate.settings()}
        kept = self.kept or {"p_deep": torch.zeros_like(x)}
        seen = Seen(x=x, h=h, state=kept | told, before=torch.tensor(before), **count)
        within, _ = self.gate.judge(replace(seen, error=self.gate.measure(seen)))
        reused = bool(self.deep) and bool(within)
        self.kept |= self.gate.follow(replace(seen, reused=torch.tensor(reused)))
        self.deep.append(not reused)
        if not reused:
            self.residual = after - given
        return given + self.residual


@pytest.mark.parametrize("case", fixture("fastercache")["runs"], ids=lambda one: str(one["range"]))
def test_fastercaches_attentions(case: dict[str, Any]) -> None:
    steps, deep = case["steps"], computed(case["computed"])
    window = (1 - case["window"][1] / 1000, 1.0)
    config = DiCacheConfig.preset("fastercache", interval=case["range"], num_steps=steps, window=window, guidance=None)
    assert config.schedule == Schedule.steps(*deep)
    ours = replay(Extrapolated(case["weight"]), turned(lambda x: torch.sin(x) + 0.5 * x, steps), deep, steps)
    for step, flat in case["outputs"].items():
        near(ours[int(step)], flat)


@pytest.mark.parametrize("case", fixture("fastercache")["guidance"], ids=lambda one: str(one["steps"]))
def test_fastercaches_guidance(case: dict[str, Any]) -> None:
    steps, deep = case["steps"], computed(case["computed"])
    rule, _ = DiCacheConfig.preset("fastercache", num_steps=steps, grid=(6, 8)).rules
    assert rule.schedule == Schedule.steps(*deep)
    estimator = rule.estimator
    assert isinstance(estimator, GuidanceDifference)
    for form in ((1, 48, 1), (1, 1, 6, 8)):  # tokens with their grid, and a picture
        ours = replace(estimator, grid=(6, 8) if len(form) == 3 else None)
        found = guided(ours, steps, deep, form)
        for step, flat in case["outputs"].items():
            near(found[int(step)].reshape(1, 6, 8), flat, GROWN)


def guided(estimator: GuidanceDifference, steps: int, deep: Sequence[int], form: Sequence[int]) -> dict[int, Tensor]:
    """The estimates of the unconditional call, by hand."""
    found, state = {}, dict[str, Tensor]()
    told = {one.name: torch.tensor(one.value) for one in estimator.settings()}
    for step in range(steps):
        cond, uncond = (_denoised(share * turning(step + ahead, steps)) for share, ahead in ((1, 0), (0.9, 0.7)))
        number = torch.tensor(step)
        seen = Seen(
            x=cond.reshape(form),
            h=cond.reshape(form),
            state={**state, **told, "partner": cond.reshape(form)},
            index=number,
            time=number.float(),
            anchors=number,
            since=number,
        )
        if step in deep:
            state = estimator.anchor(replace(seen, y=uncond.reshape(form)))
        else:
            found[step] = estimator.estimate(seen)
            state |= estimator.keep(seen)
    return found


def _denoised(latents: Tensor) -> Tensor:
    """The model of FasterCache's guidance."""
    return (torch.sin(latents) + 0.3 * latents.square()).float()


@pytest.mark.parametrize("case", fixture("meancache")["runs"], ids=lambda one: str(one["span"]))
def test_meancache(case: dict[str, Any]) -> None:
    steps, deep = case["steps"], computed(case["computed"])
    sigmas = [1 - (step / steps) ** 1.3 for step in range(steps + 1)]
    x = [smooth(0).float()]
    found: dict[int, Tensor] = {}

    def velocity(step: int) -> Tensor:
        """What the model gives; it also takes the sampler's step before, because `replay` asks for it in turn."""
        if step:
            last = found[step - 1] = ours.estimates.get(step - 1, found.get(step - 1, torch.zeros(())))
            x.append(x[-1] + (sigmas[step] - sigmas[step - 1]) * last)
        v = 0.6 * torch.sin(1.7 * x[step]) - 0.4 * x[step] + 0.3 * math.cos(4 * sigmas[step])
        found[step] = v
        return v

    ours = Replayed()
    run(None, MeanVelocity(tuple(sigmas), case["span"]), velocity, deep, steps, x=lambda step: x[step], found=ours)
    for step, flat in case["velocities"].items():
        near(ours.estimates[int(step)], flat)
    final = x[-1] + (sigmas[steps] - sigmas[steps - 1]) * found[steps - 1]
    near(final, case["final"])


@pytest.mark.parametrize("case", fixture("learning_to_cache")["runs"], ids=lambda one: str(one["threshold"]))
def test_learning_to_cache(case: dict[str, Any]) -> None:
    steps, blocks = case["steps"], 4

    def runs(step: int, part: int) -> bool:
        """By the recipe's router, whose entries begin at the last step; every second step runs whole."""
        score = 3 * math.sin(1.3 * (steps - 1 - step) + 0.9 * part) - 1
        return step % 2 == 0 or 1 / (1 + math.exp(-score)) > case["threshold"]

    routers = [[(runs(t, 2 * b), runs(t, 2 * b + 1)) for b in range(blocks)] for t in range(steps)]
    config = DiCacheConfig.preset("learning-to-cache", routers=routers)
    assert config.schedule is not None
    assert isinstance(config.sites, tuple)
    rows = dict(zip(config.sites, config.schedule.rows, strict=True))
    for block in range(blocks):
        for part, kind in enumerate(("attention", "mlp")):
            digits = "".join(of_step[2 * block + part] for of_step in case["sublayers"])
            row = rows.get((kind, block, block + 1))
            assert computed(digits) == list(range(steps) if row is None else row.deep_steps(steps))


@pytest.mark.parametrize("case", fixture("worldcache")["runs"], ids=lambda one: f"{one['newer']}-{one['step']}")
@pytest.mark.parametrize("sample", [0, 1])
def test_worldcache(case: dict[str, Any], sample: int) -> None:
    def probe(t: float) -> Tensor:
        return 0.5 * smooth(t) if sample == 0 else 0.3 * torch.cos(0.2 * t + smooth(0.5 * t))

    def residual(t: float) -> Tensor:
        return smooth(1.3 * t) if sample == 0 else torch.sin(0.15 * t + smooth(t))

    at = [case["older"], case["newer"], case["step"]]
    ours = replay(
        ProjectedDCTA((0.2, 1.8)),
        lambda step: residual(at[step]).float(),
        (0, 1),
        3,
        h=lambda step: probe(at[step]).float(),
    )
    near(ours[2], case["estimate"][sample * 48 : sample * 48 + 48])


@pytest.mark.parametrize("case", fixture("worldcache")["gate"], ids=lambda one: f"{one['salience']}-{one['relax']}")
def test_the_gate_of_worldcache(case: dict[str, Any]) -> None:
    steps, first = case["steps"], int(case["steps"] * case["warmup"])
    grid = tuple(case["grid"]) if case["salience"] else None
    gate = SalientChange(case["threshold"], grid, case["salience"], case["motion"], case["relax"], steps)
    look, truth = turned(first_block, steps), turned(tiny_model, steps)
    ours = run(gate, ProjectedDCTA((0.2, 1.8)), truth, range(first), steps, x=turned(lambda x: x, steps), h=look)
    assert ours.computed(steps) == case["computed"]
    for step, drift, limit in case["drifts"]:
        assert ours.compared[step] == pytest.approx(drift / limit * case["threshold"], rel=COMPARED)
    for step, flat in case["outputs"].items():
        near(ours.estimates[int(step)], flat)


@pytest.mark.parametrize("case", fixture("speca")["runs"], ids=lambda one: str(one["threshold"]))
def test_speca(case: dict[str, Any]) -> None:
    steps = case["steps"]
    given = {name: case[name] for name in ("threshold", "decay", "least", "most")}
    config = DiCacheConfig.preset("speca", num_steps=steps, **given)
    gate, most = config.gate, config.max_consecutive_skips
    assert isinstance(gate, DraftError)
    assert most is not None
    count, ours, nothing = 0, "", torch.zeros(())
    bare = Seen(nothing, nothing, {"threshold": torch.tensor(gate.threshold)}, *[torch.tensor(0)] * 4)
    for step in range(steps):
        error = torch.tensor(case["scale"] * (1 + math.sin(1.7 * (step - 1))))  # theirs is of the step before
        seen = replace(bare, index=torch.tensor(step), since=torch.tensor(count), error=error)
        reused = step not in (0, *config.deep_steps) and count < most and bool(gate.judge(seen)[0])
        count, ours = count + 1 if reused else 0, ours + "10"[reused]
    assert ours == case["computed"]


@pytest.mark.parametrize("case", fixture("toca")["schedules"], ids=lambda one: f"{one['interval']}-{one['ratio']}")
def test_toca_schedule(case: dict[str, Any]) -> None:
    form = {} if case["ratio"] else {"tilt": 0.0, "sensitive": None}
    schedule = tapered(case["steps"], interval=case["interval"], **form)
    assert list(schedule.deep_steps(case["steps"])) == computed(case["computed"])


@pytest.mark.parametrize(
    "case",
    [run for run in fixture("toca")["runs"] if run["score"] == "norm"],
    ids=lambda one: f"{one['age_weight']}-{one['share']}",
)
def test_toca_picks_tokens(case: dict[str, Any]) -> None:
    shape = (2, 16, 5)
    tokens = Tokens(case["share"], age_weight=case["age_weight"], period=3, score="norm", grid=(4, 4))

    def given(step: int) -> Tensor:
        return torch.cat([smooth(step, (1, *shape[1:])), turning(step, 50, (1, *shape[1:]))]).float()

    def mlp(x: Tensor) -> Tensor:
        return torch.cos(x) + 0.3 * x

    number = torch.zeros(())
    seen = Seen(given(0), number, {"age": torch.zeros(2, 16, 1)}, number, number, number, number, y=mlp(given(0)))
    state = tokens.anchor(seen)
    for step in case["steps"]:
        seen = replace(seen, x=given(step["step"]), state=state)
        places = tokens.pick(seen)
        assert places.sort(-1).values.tolist() == step["tokens"]
        some = torch.take_along_dim(seen.x, places.unsqueeze(-1), dim=1)
        state = tokens.renew(replace(seen, places=places, y=mlp(some)))
        assert state["age"].squeeze(-1).tolist() == step["ages"]
        if "output" in step:
            estimate = tokens.estimate(replace(seen, state=state))
            torch.testing.assert_close(estimate.double(), values(step["output"], shape), **NEAR)
