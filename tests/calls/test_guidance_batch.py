"""Both branches of guidance as one batch: two calls are made of it, and a reused step computes half of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dicache_compile import DiCacheConfig, Schedule, enable_cache, generation, split_guidance, stream, summary
from dicache_compile.armed import Armed
from dicache_compile.errors import CacheWarning, GuidanceBatchError
from dicache_compile.estimators import GuidanceDifference
from tests import models
from tests.calls.test_guidance import DEEP, EVERY, decisions, estimated
from tests.contract.test_contract import DTYPES, KINDS, STEPS, assert_near
from tests.helpers.cells import cells

EACH = 2  # rows of a branch


def rule(**fields: Any) -> DiCacheConfig:
    found = {"sites": "model", "schedule": Schedule.every(EVERY, after=1), "estimator": GuidanceDifference()}
    return DiCacheConfig(**{**found, "lowering": "eager", "strict": True, **fields})


def batch(model: models.Model, step: int, order: str = "negative first") -> tuple[Any, ...]:
    """The same latents in both halves, other prompts; all tensors of EACH rows a half."""
    halves = {}
    for name, sign in (("cond", 1.0), ("uncond", -0.7)):
        latents, timestep, prompt, *more = models.inputs(model, step, STEPS, batch=EACH)
        halves[name] = latents, timestep, sign * prompt, *more
    first, second = ("uncond", "cond") if order == "negative first" else ("cond", "uncond")
    return pytree.tree_map(lambda *pair: torch.cat(pair), halves[first], halves[second])


def expected(model: models.Model, order: str = "negative first") -> list[Tensor]:
    """What a generation gives in plain PyTorch: each branch computed by itself, one of them estimated."""
    truth = {}
    for step in range(STEPS):
        given = batch(model, step, order)
        halves = (slice(0, EACH), slice(EACH, None))
        first, second = (model(*pytree.tree_map(lambda one, at=at: one[at], given)) for at in halves)
        truth["cond", step], truth["uncond", step] = (second, first) if order == "negative first" else (first, second)
    flat = estimated(truth)
    pairs = [(cond, uncond) for cond, uncond in zip(flat[::2], flat[1::2], strict=True)]
    return [torch.cat((uncond, cond) if order == "negative first" else (cond, uncond)) for cond, uncond in pairs]


@cells("kind, engine, dtype", KINDS, ["calls", "conditional"], DTYPES)
@torch.no_grad()
def test_one_batch_of_both_branches_is_what_two_calls_of_them_are(
    kind: type[models.Model], engine: str, dtype: torch.dtype
) -> None:
    model = models.make(kind, dtype)
    truth = expected(model)
    enabled = enable_cache(model, rule(engine=engine), compile=False, guidance_batch="negative first")
    for _ in range(2):  # nothing is left of the first generation
        assert_near([model(*batch(model, step)) for step in range(STEPS)], truth)
        assert decisions(model, 1) == {"cond": "d" * STEPS, "uncond": DEEP}
    enabled.disable()
    assert torch.equal(model(*batch(model, 1)), model.forward(*batch(model, 1)))


@torch.no_grad()
def test_rows_that_are_requests_are_named_as_those_of_one_branch() -> None:
    model = models.make(models.SingleStream)
    truth = expected(model)
    enable_cache(model, rule(rows="independent"), compile=False, guidance_batch="negative first")
    with stream(["a", "b"], num_steps=STEPS):
        assert_near([model(*batch(model, step)) for step in range(STEPS)], truth)
    marks = {"cond": "d" * STEPS, "uncond": DEEP}
    assert decisions(model) == {f"{name}/{lane}": marks[lane] for name in "ab" for lane in marks}


@torch.no_grad()
def test_the_negative_half_may_be_the_last_one_and_a_compiled_model_is_taken_too() -> None:
    model = models.make(models.SingleStream)
    compiled = torch.compile(model, backend="dicache", options=rule().options())
    call = split_guidance(compiled, "negative last")
    ours = [call(*batch(model, step, "negative last")) for step in range(STEPS)]
    assert_near(ours, expected(model, "negative last"))
    assert decisions(model) == {"cond": "d" * STEPS, "uncond": DEEP}


def multiplied(call: Callable[[], object]) -> int:
    """How many additions and multiplications the matrix products of a call are."""
    with torch.profiler.profile(with_flops=True) as found:
        call()
    products = ("aten::mm", "aten::addmm", "aten::bmm")
    return sum(event.flops for event in found.key_averages() if event.key in products)


@torch.no_grad()
def test_a_reused_step_computes_half_of_the_rows() -> None:
    model = models.make(models.SingleStream)
    enable_cache(model, rule(), compile=False, guidance_batch="negative first")
    model(*batch(model, 0))
    for step in range(1, EVERY + 1):
        whole = multiplied(lambda step=step: model.forward(*batch(model, step)))
        assert whole
        assert multiplied(lambda step=step: model(*batch(model, step))) == (whole if step == EVERY else whole / 2)


@torch.no_grad()
def test_two_pictures_without_guidance_are_computed_both() -> None:
    model = models.make(models.SingleStream)
    enable_cache(model, rule(), compile=False, guidance_batch="negative first")
    for step in range(STEPS):
        latents, *more = batch(model, step)
        latents = torch.cat((latents[:EACH], latents[EACH:] + 0.1))
        assert_near([model(latents, *more)], [model.forward(latents, *more)])
    assert decisions(model) == {"cond": "d" * STEPS, "uncond": "d" * STEPS}


@torch.no_grad()
def test_one_row_is_called_as_it_is() -> None:
    model = models.make(models.SingleStream)
    enable_cache(model, rule(), compile=False, guidance_batch="negative first")
    for step in range(3):
        given = pytree.tree_map(lambda one: one[:1], batch(model, step))
        assert torch.equal(model(*given), model.forward(*given))
    assert decisions(model) == {"0": "ddd"}


@torch.no_grad()
def test_steps_of_an_announced_generation_go_straight_in_both_branches() -> None:
    model = models.make(models.SingleStream)
    truth = expected(model)
    enable_cache(model, rule(), compile=False, guidance_batch="negative first")
    armed: Any = model._compiled_call_impl
    assert isinstance(armed.inner, Armed)
    with generation(num_steps=STEPS):
        assert_near([model(*batch(model, step)) for step in range(STEPS)], truth)
    assert armed.inner.calls >= 2 * STEPS - 2


class _Means(nn.Module):
    """Its rows look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.make(models.SingleStream)

    def forward(self, latents: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        out: Tensor = self.inner(latents, timestep, prompt)
        return out + 0.1 * prompt.mean()


class _Places(nn.Module):
    """What it takes of the tokens' places has as many rows as the batch, and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.make(models.SingleStream)

    def forward(self, latents: Tensor, timestep: Tensor, prompt: Tensor, places: Tensor) -> Tensor:
        out: Tensor = self.inner(latents, timestep, prompt)
        return out + 0.3 * places.sum(0)


class _Pairs(nn.Module):
    """It takes no half of its rows."""

    def forward(self, latents: Tensor) -> Tensor:
        return latents.reshape(2 * EACH, -1).reshape(latents.shape)


def places() -> Tensor:
    return torch.linspace(-1, 1, 2 * EACH)[:, None]


@pytest.mark.parametrize(
    ("kind", "more", "text"),
    [
        (_Means, lambda: (), r"another result than of all at once, [\d.]+% off; leave out guidance_batch"),
        (_Places, lambda: (places(),), r"another result than of all at once"),
    ],
)
@torch.no_grad()
def test_a_batch_whose_halves_do_not_give_the_same_is_refused(
    kind: type[nn.Module], more: Callable[[], tuple[Tensor, ...]], text: str
) -> None:
    model = kind()
    model.requires_grad_(False)
    enable_cache(model, rule(strict=False), compile=False, guidance_batch="negative first")
    given = (*batch(model.inner, 0), *more())  # type: ignore[arg-type]
    for _ in range(2):  # it is not taken for known
        with pytest.raises(GuidanceBatchError, match=text):
            model(*given)


@torch.no_grad()
def test_a_model_that_fails_with_half_of_the_rows_says_so() -> None:
    call = split_guidance(torch.compile(_Pairs(), backend="eager"))
    with pytest.raises(GuidanceBatchError, match="with half of the 4 rows of each argument the model fails: "):
        call(torch.ones(2 * EACH, 3))


@torch.no_grad()
def test_a_call_that_is_one_branch_already_is_refused() -> None:
    model = models.make(models.SingleStream)
    enable_cache(model, rule(), compile=False, guidance_batch="negative first")
    with stream("cond"), pytest.raises(GuidanceBatchError, match="of the stream 'cond' already"):
        model(*batch(model, 0))


def test_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance_batch: expected 'negative first', 'negative last' or None, got 1"):
        enable_cache(models.make(models.SingleStream), guidance_batch=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order: expected 'negative first' or 'negative last', got 'cond first'"):
        split_guidance(models.make(models.SingleStream), "cond first")  # type: ignore[arg-type]


PIPELINES = ["pixart_alpha", "sd3", "sana", "cogvideox", "ltx", "mochi"]


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_that_send_one_batch_give_what_the_rule_gives_in_plain_pytorch(name: str) -> None:
    pytest.importorskip("diffusers")
    from zoo.pipelines import pipelines
    from zoo.pipelines.entry import STEPS as RUN
    from zoo.pipelines.entry import generate

    pipe, arguments = pipelines()[name].make()
    model = pipe.transformer
    plain, difference, step = model.forward, torch.zeros(()), -1

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal difference, step
        step += 1
        (out,) = plain(*args, **{**kwargs, "return_dict": False})
        negative, positive = out.chunk(2)
        if step % EVERY == 0:
            difference = negative - positive
        return (torch.cat((positive + difference, positive)),)

    model.forward = forward
    truth = generate(pipe, arguments)
    assert step == RUN - 1
    model.forward = plain
    uncached = generate(pipe, arguments)
    enable_cache(pipe, rule(), compile=False, guidance_batch="negative first")
    ours = generate(pipe, arguments)
    # Rows are computed two at a time or one at a time: other orders of sums, which steps and guidance make larger.
    assert (ours - truth).norm() <= 1e-4 * truth.norm()
    assert (truth - uncached).norm() > 1e-3 * truth.norm()
    deep = "".join("." if step % EVERY else "d" for step in range(RUN))
    assert decisions(model) == {"cond": "d" * RUN, "uncond": deep}


def test_fastercaches_attentions_and_guidance_work_together_on_a_pipeline() -> None:
    pytest.importorskip("diffusers")
    from zoo.pipelines import pipelines
    from zoo.pipelines.entry import STEPS as RUN
    from zoo.pipelines.entry import generate

    pipe, arguments = pipelines()["sd3"].make()
    plain = generate(pipe, arguments)
    fields: dict[str, Any] = {"num_steps": RUN, "guidance": 3, "compile": False, "strict": True}
    enable_cache(pipe, preset="fastercache", guidance_batch="negative first", **fields)
    ours = generate(pipe, arguments)
    assert torch.equal(generate(pipe, arguments), ours)
    assert ours.isfinite().all()
    assert not torch.equal(ours, plain)
    streams = summary(pipe.transformer).generations[-1].streams
    asked = {
        name: [["-" if one is None else ".D"[one.deep] for one in step.decisions] for step in streams[name]]
        for name in streams
    }
    # Guidance is reused but on multiples of 3 within 0.359 to 1 of the run; attentions on odd steps within 0.319 to 1.
    assert ["".join(step) for step in asked["cond"]] == ["DD", "DD", "DD", "D.", "DD", "D.", "DD", "D."]
    assert ["".join(step) for step in asked["uncond"]] == ["DD", "DD", "DD", "D.", ".-", ".-", "DD", ".-"]


@torch.no_grad()
def test_calls_that_bring_both_branches_and_are_not_split_are_told_what_to_do() -> None:
    model = models.make(models.SingleStream)
    enable_cache(model, rule(), compile=False)
    for step in range(STEPS):
        model(*batch(model, step))
    with pytest.warns(CacheWarning, match=r"the calls of stream '0' are neither.*guidance_batch='negative first'"):
        model(*batch(model, 0))
