"""One call of guidance is estimated from another one of the same step; where that is not known, it runs deep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, SiteRule, reset, stream, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import GuidanceDifference, Reuse
from tests import models
from tests.contract.test_contract import DTYPES, ENGINES, KINDS, STEPS, assert_near, compiled
from tests.helpers.cells import cells

pytestmark = pytest.mark.shares_traces
EVERY = 3
DEEP = "".join("d" if step % EVERY == 0 else "." for step in range(STEPS))
BOTH = ("cond", "uncond")


def rule(**fields: Any) -> dict[str, Any]:
    found = {"sites": "model", "schedule": Schedule.every(EVERY, after=1), "estimator": GuidanceDifference()}
    return {**found, **fields}


def arguments(model: models.Model, name: str, step: int, seed: int = 0, **sizes: int) -> tuple[Any, ...]:
    """The same latents for both calls of a step; another prompt."""
    latents, timestep, prompt, *more = models.inputs(model, step, STEPS, seed, **sizes)
    return latents, timestep, -0.7 * prompt if name.endswith("uncond") else prompt, *more


@torch.no_grad()
def sampled(
    call: Callable[..., Tensor],
    model: models.Model,
    names: Sequence[str] = BOTH,
    steps: Sequence[int] = range(STEPS),
    seed: int = 0,
    **sizes: int,
) -> dict[tuple[str, int], Tensor]:
    """What each call of a generation gives, by its stream and step."""
    found = {}
    for step in steps:
        for name in names:
            with stream(name):
                found[name, step] = call(*arguments(model, name, step, seed, **sizes))
    return found


def estimated(truth: dict[tuple[str, int], Tensor], deep: str = DEEP) -> list[Tensor]:
    """What the generation gives in plain PyTorch, in float32 but for the results."""
    found, difference = [], torch.zeros(())
    for step, letter in enumerate(deep):
        cond, uncond = (truth[name, step] for name in BOTH)
        if letter != ".":
            difference = (uncond.float() - cond.float()).to(cond.dtype)  # as it is kept
        found += [cond, uncond if letter != "." else (cond.float() + difference.float()).to(cond.dtype)]
    return found


def decisions(model: models.Model, last: int = 0) -> dict[str, str]:
    """Of all generations, or of so many last ones."""
    letters = {(False, False): ".", (True, False): "D", (True, True): "d"}
    found: dict[str, str] = {}
    for generation in summary(model).generations[-last:]:
        for name, steps in generation.streams.items():
            found[name] = found.get(name, "") + "".join(letters[step.deep, step.forced] for step in steps)
    return found


@cells("kind, engine, dtype", KINDS, ENGINES, DTYPES)
def test_the_unconditional_call_is_the_conditional_one_and_the_last_difference(
    kind: type[models.Model], engine: str, dtype: torch.dtype
) -> None:
    model = models.make(kind, dtype)
    call = compiled(model, engine=engine, **rule())
    truth = sampled(model, model)
    for _ in range(2):  # nothing is left of the first generation
        assert_near([*sampled(call, model).values()], estimated(truth))
        assert decisions(model, 1) == {"cond": "d" * STEPS, "uncond": DEEP}


def test_on_a_reused_step_nothing_of_the_model_runs() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, **rule())
    sampled(call, model, steps=range(1))
    step = sessions_of(model)[-1].last_cut
    (reused,) = (piece for piece in step.program.pieces() if piece.name == "RE")
    heavy = {node.target for node in reused.graph_module.graph.nodes if node.op == "call_function"}
    assert torch.nn.functional.linear not in heavy
    assert torch.nn.functional.scaled_dot_product_attention not in heavy


@pytest.mark.parametrize(
    "names",
    [("uncond", "cond"), ("uncond",), ("other", "uncond"), ("a/cond", "b/uncond"), ("0", "1")],
    ids=["before it", "alone", "with another", "of two requests", "of other names"],
)
def test_without_the_conditional_call_before_it_in_its_request_it_runs_deep(names: tuple[str, ...]) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, **rule())
    ours, truth = sampled(call, model, names), sampled(model, model, names)
    assert all(torch.equal(ours[at], truth[at]) for at in truth)
    assert set(decisions(model).values()) == {"d" * STEPS}


def test_streams_may_have_other_names() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, **rule(estimator=GuidanceDifference(stream="1", partner="0")))
    sampled(call, model, ("0", "1"))
    assert decisions(model) == {"0": "d" * STEPS, "1": DEEP}


def test_several_calls_go_by_one_and_a_fourth_has_no_part_in_it() -> None:
    model = models.make(models.SingleStream)
    outer = SiteRule(**rule(estimator=GuidanceDifference(stream="perturbed")))
    inner = SiteRule(**rule(sites="trunk"))
    call = compiled(model, rules=(outer, inner))
    names = ("cond", "stranger", "perturbed", "uncond")
    ours, truth = sampled(call, model, names), sampled(model, model, names)
    kept = {name: {step: truth[name, step] - truth["cond", step] for step in range(STEPS)} for name in names}
    expected = {
        (name, step): truth[name, step]
        if name in ("cond", "stranger")
        else truth["cond", step] + kept[name][step - step % EVERY]
        for name, step in truth
    }
    # The trunk's result goes through the epilogue, which is not linear: that of "uncond" is held to its deep steps.
    for step in range(STEPS):
        at = [(name, step) for name in names if name != "uncond" or step % EVERY == 0]
        assert_near([ours[one] for one in at], [expected[one] for one in at])
    assert not torch.equal(ours["uncond", 1], truth["uncond", 1])


@pytest.mark.parametrize("engine", ["calls", "conditional"])
def test_a_conditional_call_that_fails_is_nobodys_partner(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, engine=engine, **rule())
    with torch.no_grad():
        for step in range(STEPS):
            for name in BOTH:
                with stream(name):
                    call(*arguments(model, name, step))
                if (name, step) == ("cond", 4):
                    sessions_of(model)[-1].drop("cond")
    assert decisions(model)["uncond"] == "d..dddd..d"  # 4 has no partner; 5 no difference to the new one's


def test_other_latents_at_the_same_timestep_are_another_step() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, **rule())
    with torch.no_grad():
        for step in range(STEPS):
            for name in BOTH:
                latents, *more = arguments(model, name, step)
                moved = latents + 0.01 if (name, step) == ("uncond", 4) else latents
                with stream(name):
                    call(moved, *more)
    assert decisions(model)["uncond"] == "d..dddd..d"  # the step after it has no difference to go by


def test_another_prompt_of_the_conditional_call_needs_another_difference() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, **rule())
    with torch.no_grad():
        for step in range(STEPS):
            for name in BOTH:
                latents, timestep, prompt = arguments(model, name, step)
                with stream(name):
                    call(latents, timestep, 1.3 * prompt if name == "cond" and step >= 4 else prompt)
    assert decisions(model)["uncond"] == "d..dd.d..d"


def test_two_requests_side_by_side_give_what_each_gives_alone() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, **rule())
    alone = {}
    for request, seed in (("a", 0), ("b", 7)):
        reset(model)
        names = [f"{request}/{name}" for name in BOTH]
        alone |= sampled(call, model, names, seed=seed)
    reset(model)
    with torch.no_grad():
        for step in range(STEPS):
            for name in ("a/cond", "b/cond", "b/uncond", "a/uncond"):
                with stream(name):
                    out = call(*arguments(model, name, step, seed=0 if name.startswith("a") else 7))
                assert torch.equal(out, alone[name, step])
    assert decisions(model, 1) == {name: DEEP if name.endswith("uncond") else "d" * STEPS for name, _ in alone}


@pytest.mark.parametrize("engine", ["calls", "conditional"])
def test_a_result_of_another_shape_is_no_partner(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, engine=engine, **rule())
    shapes = {"cond": {"tokens": 6}, "uncond": {"tokens": 6}}
    with torch.no_grad():
        for step in range(STEPS):
            if step == 5:
                shapes["uncond"] = {"tokens": 5}
            if step == 7:
                shapes["cond"] = {"tokens": 5}
            for name in BOTH:
                given = arguments(model, name, step, **shapes[name])
                with stream(name):
                    out = call(*given)
                if decisions(model)[name][-1] != ".":
                    torch.testing.assert_close(out, model(*given))
                else:
                    assert out.shape == given[0].shape
    # Step 5 begins a generation. Until 7 nobody has given a result of that shape, and then there is no difference yet.
    assert decisions(model)["uncond"] == "d..d.dddd."


def test_what_the_conditional_call_estimates_is_gone_by_too() -> None:
    model = models.make(models.SingleStream)
    inner = SiteRule(schedule=Schedule.every(2), estimator=Reuse())
    call = compiled(model, rules=(SiteRule(**rule()), inner))
    ours = sampled(call, model)
    for step in range(STEPS):
        if step % EVERY:
            before = step - step % EVERY
            expected = ours["cond", step] + (ours["uncond", before] - ours["cond", before])
            assert_near([ours["uncond", step]], [expected])
    truth = sampled(model, model, ["cond"])
    assert not torch.equal(ours["cond", 1], truth["cond", 1])  # which the inner rule has reused


def test_guidance_steps_and_blocks_are_reused_in_one_run() -> None:
    model = models.make(models.SingleStream)
    common: dict[str, Any] = {"estimator": Reuse()}
    steps = SiteRule(schedule=Schedule.every(2), **common)
    blocks = SiteRule(sites=(2, 4), schedule=Schedule.steps(0, 2, 6), **common)
    call = compiled(model, rules=(SiteRule(**rule()), steps, blocks))
    sampled(call, model)

    def asked(name: str, number: int) -> str:
        record = summary(model).generations[-1].streams[name]
        return "".join("-" if (one := step.decisions[number]) is None else ".D"[one.deep] for step in record)

    assert [asked("cond", number) for number in range(3)] == ["DDDDDDDDDD", "D.D.D.D.D.", "D-D-.-D-.-"]
    assert [asked("uncond", number) for number in range(3)] == ["D..D..D..D", "D--.--D--.", "D-----D---"]


def test_calls_decide_apart_where_one_is_estimated_from_another() -> None:
    guided = SiteRule(**rule())
    assert not DiCacheConfig(rules=(guided, SiteRule())).decides_jointly()
    assert DiCacheConfig(rules=(guided, SiteRule()), joint=True).decides_jointly()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sites": "attention"}, "goes by another call at one site, as 'model': sites='attention'"),
        ({"sites": ((0, 2), (2, 4))}, "goes by another call at one site"),
        ({"streams": 1}, "streams: with 1 all calls are of one stream"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DiCacheConfig(**rule(**fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stream": "cond"}, "stream, partner: expected two names, got 'cond' and 'cond'"),
        ({"partner": ""}, "expected two names"),
        ({"low": float("nan")}, "low: expected a finite number, or one for each step, got nan"),
        ({"high": ()}, "high: expected a finite number"),
        ({"cutoff": 0.6}, "cutoff: expected a number from 0 to 0.5, got 0.6"),
        ({"grid": (2, 0)}, "grid: expected"),
    ],
)
def test_an_estimator_that_makes_no_sense_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GuidanceDifference(**fields)
    with pytest.raises(TypeError, match="expected the name of a stream, got 3"):
        GuidanceDifference(stream=3)  # type: ignore[arg-type]


def low_band(difference: Tensor, rows: int, columns: int) -> Tensor:
    """Of [B, tokens, channels], in float64: frequencies within a fifth of the smaller side, by a shifted transform."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(difference.double().unflatten(1, (rows, columns)), dim=(1, 2)), (1, 2))
    down, across = (torch.arange(size) - size // 2 for size in (rows, columns))
    disk = down[:, None] ** 2 + across[None] ** 2 <= (min(rows, columns) // 5) ** 2
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * disk[..., None], (1, 2)), dim=(1, 2)).real.flatten(1, 2)


@pytest.mark.parametrize(
    ("engine", "lowering"),
    [
        *((engine, "eager") for engine in ENGINES),
        ("calls", "inductor"),
        pytest.param("cond", "inductor", marks=pytest.mark.exhaustive),
    ],  # the stand-in for captures records operators, and Inductor's kernels are none
)
def test_bands_grow_from_reused_step_to_reused_step(engine: str, lowering: str) -> None:
    model = models.make(models.SingleStream)
    factors = tuple(1.0 + step / 10 for step in range(STEPS))
    estimator = GuidanceDifference(low=factors, high=1.2, grid=(5, 6))
    call = compiled(model, engine=engine, lowering=lowering, **rule(estimator=estimator))
    ours, truth = sampled(call, model, tokens=30), sampled(model, model, tokens=30)
    for step in range(STEPS):
        assert_near([ours["cond", step]], [truth["cond", step]])
        before = step - step % EVERY
        difference = (truth["uncond", before] - truth["cond", before]).double()
        low = high = 1.0
        for one in range(before + 1, step + 1):
            low, high = low * factors[one], high * 1.2
        slow = low_band(difference, 5, 6)
        expected = truth["cond", step] + low * slow + high * (difference - slow)
        assert_near([ours["uncond", step]], [expected.float()])
    assert decisions(model)["uncond"] == DEEP


def test_bands_of_tokens_need_their_grid() -> None:
    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match=r"need the grid \(rows, columns\) of the tokens"):
        sampled(compiled(model, **rule(estimator=GuidanceDifference(low=1.1))), model, steps=range(1))


class _TwoNoisy(torch.nn.Module):
    """Two inputs of the result's shape: nothing tells which one is denoised."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.make(models.SingleStream)

    def forward(self, latents: Tensor, other: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        return self.inner(latents + other, timestep, prompt)


def test_a_model_whose_latents_cannot_be_told_is_refused_with_that_reason() -> None:
    model = _TwoNoisy()
    latents, timestep, prompt = models.inputs(model.inner, 0, STEPS)
    call = torch.compile(
        model, backend="dicache", options=DiCacheConfig(lowering="eager", strict=True, **rule()).options()
    )
    with pytest.raises(Exception, match=r"not known which input is denoised.*leave out the rule"), torch.no_grad():
        call(latents, latents.clone(), timestep, prompt)


class _PlainMix:
    """One stream of MixCache's ways in plain PyTorch: the whole call, all blocks but the first, a range of them."""

    def __init__(self, model: models.Model, config: DiCacheConfig) -> None:
        self._model, self._rules, self._step = model, config.all_rules(), -1
        self._of_step: dict[str, Tensor] = {}
        self._of_blocks: Tensor | None = None
        self._difference: Tensor | None = None
        self.did = ""  # of each step: "g" guidance reused, "s" the step, "b" the blocks, "d" none

    def __call__(self, latents: Tensor, timestep: Tensor, prompt: Tensor, partner: Tensor | None) -> Tensor:
        self._step += 1
        guidance, steps, blocks = self._rules
        if partner is not None and self._difference is not None and self._may(guidance):
            self.did += "g"
            return partner + self._difference
        carried = self._model.run(self._model.enter(latents, timestep, prompt), 0, 1)
        h, x = carried["x"], self._model.enter(latents, timestep, prompt)["x"]
        last = self._of_step.get("p")
        near = last is not None and float((h - x - last).abs().mean() / last.abs().mean()) < steps.gate.threshold
        if near and self._step >= steps.warmup_steps:
            self.did += "s"
            y = h + self._of_step["r"]
        else:
            y = self._deep(carried, blocks)
            self._of_step = {"p": h - x, "r": y - h}
        out = self._model.leave({**carried, "x": y})
        if partner is not None:
            self._difference = out - partner
        return out

    def _deep(self, carried: Any, blocks: Any) -> Tensor:
        first, last = blocks.sites
        entered = self._model.run(carried, 1, first)
        x = entered["x"]
        if self._of_blocks is not None and self._may(blocks):
            self.did += "b"
            left = {**entered, "x": x + self._of_blocks}
        else:
            self.did += "d"
            left = self._model.run(entered, first, last)
            self._of_blocks = left["x"] - x
        y: Tensor = self._model.run(left, last, self._model.depth)["x"]
        return y

    def _may(self, rule: Any) -> bool:
        return self._step not in rule.schedule.deep_steps(STEPS)


@pytest.mark.parametrize("engine", ["calls", "conditional"])
@torch.no_grad()
def test_mixcache_reuses_calls_steps_or_blocks_as_in_plain_pytorch(engine: str) -> None:
    model = models.make(models.SingleStream, depth=6)
    config = DiCacheConfig.preset("mixcache", blocks=(2, 5), threshold=0.1, guidance=3, every=4, warmup_steps=2)
    call = compiled(model, engine=engine, joint=False, rules=config.rules)
    plain = {name: _PlainMix(model, config) for name in BOTH}
    for step in range(STEPS):
        given = {name: arguments(model, name, step) for name in BOTH}
        cond = plain["cond"](*given["cond"], None)
        theirs = {"cond": cond, "uncond": plain["uncond"](*given["uncond"], cond)}
        for name in BOTH:
            with stream(name):
                assert_near([call(*given[name])], [theirs[name]])
    record = summary(model).generations[-1].streams
    letters = {name: "".join(map(_way, record[name])) for name in BOTH}
    assert letters == {name: plain[name].did for name in BOTH}
    assert set("".join(letters.values())) == set("gsbd")


def _way(step: Any) -> str:
    reused = [rule is not None and not rule.deep for rule in step.decisions]
    return "gsb"[reused.index(True)] if any(reused) else "d"
