"""Dynamic shapes on models of the zoo: each resolution as if it were the only one, and no graph more than plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn

import zoo
from dicache_compile import DiCacheConfig, dicache_backend, summary
from dicache_compile.calls.session import sessions_of
from tests.helpers.published import published
from tests.models import Model
from tests.oracles.hook_oracle import HookOracle
from tests.oracles.plain_oracle import PlainDiCache
from tests.use.test_zoo import EXACT, REUSING, tensors
from zoo.entry import At, Call, Carried, Entry
from zoo.wild.parts import settled

ENTRIES = zoo.entries()
STEPS = 6
DEEP = (True, True, False, True, False, True)  # what REUSING does
Size = tuple[int, ...]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_batch(call: Call, batch: int) -> Call:
    """The call with that many rows in every tensor; the first dimension of all is the batch."""
    return {k: torch.cat([v] * batch)[:batch] if isinstance(v, Tensor) else v for k, v in call.items()}


def flux(call: Call, size: Size) -> Call:
    """Positions are of the image alone, without a batch in flux and chroma, with one in flux2."""
    batch, height, width, text = size
    ids = {key: call.pop(key) for key in ("img_ids", "txt_ids")}
    call = in_batch(call, batch)
    image = torch.zeros(height * width, ids["img_ids"].shape[-1], dtype=ids["img_ids"].dtype)
    image[:, 1:3] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    words = torch.zeros(text, image.shape[-1], dtype=image.dtype)
    rows = (batch, 1, 1)
    image, words = (image.repeat(rows), words.repeat(rows)) if ids["img_ids"].dim() == 3 else (image, words)
    hidden, prompt = noise(batch, height * width, 4), noise(batch, text, 32, seed=2)
    return {**call, "hidden_states": hidden, "encoder_hidden_states": prompt, "img_ids": image, "txt_ids": words}


def krea2(call: Call, size: Size) -> Call:
    height, width, text = size
    places = torch.zeros(text + height * width, 3)
    places[text:, 1:] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return {
        **call,
        "hidden_states": noise(1, height * width, 16),
        "encoder_hidden_states": noise(1, text, 3, 16, seed=2),
        "encoder_attention_mask": torch.ones(1, text, dtype=torch.bool),
        "position_ids": places,
    }


def qwenimage(call: Call, size: Size) -> Call:
    height, width = size
    return {**call, "hidden_states": noise(1, height * width, 16), "img_shapes": [(1, height, width)]}


def latents(call: Call, size: Size, key: str = "hidden_states") -> Call:
    """Batch, and what stands behind the channels."""
    batch, *places = size
    channels = call[key].shape[1]
    return {**in_batch(call, batch), key: noise(batch, channels, *places)}


def sd3(call: Call, size: Size) -> Call:
    call["encoder_hidden_states"] = call["encoder_hidden_states"][:, :11]
    return latents(call, size)


def prompted(key: str) -> Callable[[Call, Size], Call]:
    """Batch, and length of the prompt."""

    def sized(call: Call, size: Size) -> Call:
        batch, text = size
        width = call[key].shape[-1]
        return {**in_batch(call, batch), key: noise(batch, text, width, seed=2)}

    return sized


def labelled(call: Call, size: Size) -> Call:
    return in_batch(call, *size)


def wild_pixart(call: Call, size: Size) -> Call:
    height, width = size
    shape = {"img_hw": torch.tensor([[8.0 * height, 8.0 * width]] * 2), "aspect_ratio": torch.full((2, 1), 4 / 3)}
    return {**call, "x": noise(2, 4, height, width), "data_info": shape}


@dataclass(frozen=True)
class Case:
    """A model at several sizes. Where a size repeats an earlier one, nothing is compiled."""

    name: str
    resize: Callable[[Call, Size], Call]
    sizes: tuple[Size, ...]
    text: int | None = None  # which number of a size is the length of a text in one sequence with the image
    joint: bool = False  # whether they are one from before the trunk, so that all of it may be the stream
    marked: Mapping[str, int] = field(default_factory=dict)  # for mark_dynamic: the dimension of each argument

    def build(self) -> nn.Module:
        """The zoo's model with as few blocks as there can be: to trace them is what takes the time."""
        torch.manual_seed(0)
        model: Any = ENTRIES[self.name].build()
        if not hasattr(model, "config"):
            return settled(type(model)(depth=3 if self.name == "wild_uvit" else 2))
        layers = {key: 2 for key in ("num_layers", "num_single_layers") if key in model.config}
        built: nn.Module = type(model).from_config({**model.config, **layers})
        return built.eval().requires_grad_(False)

    def at(self, size: Size) -> Entry:
        entry = ENTRIES[self.name]
        streams = entry.streams if self.text is None else behind(entry.streams, size[self.text])
        return replace(entry, call=lambda: self.resize(entry.call(), size), streams=streams)


def behind(streams: Sequence[Carried], text: int) -> tuple[Carried, ...]:
    """The streams with another count of tokens before those that stand behind a text."""

    def moved(at: At) -> At:
        return replace(at, start=text) if at.start else at

    return tuple(Carried(x=moved(s.x), h=moved(s.h), y=moved(s.y)) for s in streams)


FLUX_IMAGE = {"hidden_states": 1, "img_ids": 0}
CASES = {
    "flux": Case("flux", flux, ((2, 4, 5, 11), (2, 6, 7, 11), (2, 5, 9, 11), (2, 4, 5, 11)), marked=FLUX_IMAGE),
    "flux batch, prompt": Case("flux", flux, ((2, 4, 5, 11), (3, 4, 5, 14), (2, 4, 5, 9), (2, 4, 5, 11))),
    "flux2": Case("flux2", flux, ((1, 4, 5, 11), (1, 6, 7, 14), (1, 5, 9, 9), (1, 4, 5, 11)), text=3),
    "chroma": Case("chroma", flux, ((1, 4, 5, 11), (1, 6, 7, 14), (1, 5, 9, 9), (1, 4, 5, 11)), text=3),
    "sd3": Case("sd3", sd3, ((2, 6, 8), (2, 10, 12), (2, 14, 7), (2, 6, 8))),
    "wan": Case("wan", latents, ((1, 2, 6, 8), (1, 3, 8, 10), (1, 5, 12, 14), (1, 2, 6, 8))),
    "dit": Case("dit_transformer2d", latents, ((4, 12, 12), (4, 16, 16), (4, 20, 20), (4, 12, 12))),
    # The sizes are Python numbers too; Dynamo makes symbols of them where it makes them of the sizes.
    "qwenimage": Case("qwenimage", qwenimage, ((4, 5), (6, 7), (5, 9), (4, 5))),
    "krea2": Case("krea2", krea2, ((4, 5, 6), (6, 7, 6), (5, 9, 6), (4, 5, 6)), text=2, joint=True),
    "krea2 prompt": Case("krea2", krea2, ((5, 4, 6), (5, 4, 9), (5, 4, 12), (5, 4, 5)), text=2, joint=True),
    "wild_pixart": Case("wild_pixart", wild_pixart, ((6, 8), (10, 12), (14, 16), (6, 8))),
    "wild_mmdit": Case("wild_mmdit", prompted("context"), ((2, 5), (3, 7), (2, 9), (2, 5))),
    "wild_video_dit": Case("wild_video_dit", prompted("y"), ((2, 5), (3, 7), (4, 9), (2, 5))),
    "wild_functional": Case("wild_functional", prompted("prompt"), ((2, 5), (3, 7), (4, 9), (2, 5))),
    "wild_uvit": Case("wild_uvit", labelled, ((2,), (3,), (4,), (2,)), joint=True),
}


class Counted:
    """A model compiled under one of Dynamo's ways with shapes, run under two configs; `plain` for backend="eager"."""

    def __init__(self, case: Case, how: str, plain: bool = False) -> None:
        torch._dynamo.reset()
        self.model, self.case, self.marks = case.build(), case, how == "marked"
        self.graphs, self.using = 0, "exact"
        configs = {"exact": EXACT, "reusing": REUSING}

        def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
            self.graphs += 1
            if plain:
                return gm.forward
            said: dict[str, Any] = {"lowering": "eager", "strict": True, "carried": "residual"}  # as the zoo has it
            options = {name: published(**config, **said).options() for name, config in configs.items()}
            steps = {name: dicache_backend(gm, examples, options=option) for name, option in options.items()}
            return lambda *inputs: steps[self.using](*inputs)

        self.call = torch.compile(self.model, backend=backend, fullgraph=True, dynamic=True if how == "true" else None)

    @torch.no_grad()
    def step(self, size: Size, step: int, steps: int = STEPS) -> list[Tensor]:
        call = self.case.at(size).at_step(step, steps)
        for key, dim in self.case.marked.items() if self.marks else ():
            torch._dynamo.mark_dynamic(call[key], dim)
        return tensors(self.call(**call))

    def run(self, size: Size, using: str) -> list[list[Tensor]]:
        self.using = using
        return [self.step(size, step) for step in range(STEPS)]


def marks(model: nn.Module, last: int) -> list[str]:
    """The decisions of the last generations."""
    generations = [steps for generation in summary(model).generations for steps in generation.streams.values()]
    return ["".join("D" if step.deep else "." for step in steps) for steps in generations[-last:]]


class Reference:
    """What a generation should give at one size, with the errors and the shape of the stream; never compiled."""

    def __init__(self, model: nn.Module, entry: Entry, steps: Sequence[int], deep: Sequence[bool], of: int) -> None:
        calls = [entry.at_step(step, of) for step in steps]
        self.errors: list[float | None] = []
        if entry.streams:
            hooks = HookOracle(model, entry)
            self.results = []
            for call, ran in zip(calls, deep, strict=True):
                self.results.append(tensors(hooks(call, ran)))
                self.errors.append(hooks.error)
            self.shape = hooks.shapes[0]
        else:
            plain = PlainDiCache(cast(Model, model), math.inf, warmup=2, max_skips=1)
            self.results = [tensors(plain(*call.values())) for call in calls]
            self.errors = plain.errors
            assert plain.h_prev is not None
            self.shape = tuple(plain.h_prev.shape)


def assert_as_if_alone(ours: Counted, size: Size, results: list[list[Tensor]]) -> None:
    """That a generation just run reused as it should, and that the state has the stream's shape."""
    (state,) = sessions_of(ours.model)[-1].streams.values()
    kept = ("h_prev.", "r.", "p.")
    shapes = [tuple(tensor.shape) for name, tensor in state.tensors.items() if name.startswith(kept)]
    entry = ours.case.at(size)
    expected = Reference(ours.model, entry, range(STEPS), DEEP, STEPS)
    if ours.case.joint and shapes[0] != expected.shape:
        # Parts of a sequence whose length is not known when it is traced: docs/not-cached.md, "Limits".
        entry = replace(entry, streams=behind(entry.streams, 0))
        expected = Reference(ours.model, entry, range(STEPS), DEEP, STEPS)
    assert shapes == [expected.shape] * 5
    (steps,) = summary(ours.model).generations[-1].streams.values()
    assert tuple(step.deep for step in steps) == DEEP
    for step, (a, b) in enumerate(zip(results, expected.results, strict=True)):
        assert_close(a, b, f"{size}, step {step}")
    assert [step.error for step in steps][1:] == pytest.approx(expected.errors[1:], rel=1e-5)


def assert_close(ours: list[Tensor], theirs: list[Tensor], where: str) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text: f"{where}: {text}")


def assert_anew_in_mid_generation(ours: Counted) -> None:
    """That a size that comes back while the timestep goes on falling meets nothing of what it left."""
    one, other = ours.case.sizes[:2]
    sizes = [one] * 3 + [other] * 3 + [one] * 3
    results = [ours.step(size, step, len(sizes)) for step, size in enumerate(sizes)]
    assert marks(ours.model, last=3) == ["DD."] * 3
    for first in (0, 3, 6):
        steps = range(first, first + 3)
        expected = Reference(ours.model, ours.case.at(sizes[first]), steps, DEEP[:3], len(sizes))
        for step, theirs in zip(steps, expected.results, strict=True):
            assert_close(results[step], theirs, f"step {step}")


def check(case: Case, how: str) -> None:
    """Goes through the sizes of a case and compares with the model, with the oracle and with plain compilation."""
    plain, expected_graphs = Counted(case, how, plain=True), []
    for size in case.sizes:
        plain.step(size, 0)
        expected_graphs.append(plain.graphs)
    ours, graphs = Counted(case, how), []
    for size in case.sizes:
        exact, reusing = ours.run(size, "exact"), ours.run(size, "reusing")
        graphs.append(ours.graphs)
        for step, result in enumerate(exact):
            with torch.no_grad():
                uncached = tensors(ours.model(**case.at(size).at_step(step, STEPS)))
            # A dynamic graph might take other operations than a static one; in these models it does not.
            assert all(torch.equal(a, b) for a, b in zip(result, uncached, strict=True)), f"{size}, step {step}"
        assert_as_if_alone(ours, size, reusing)
    if not case.joint:
        assert_anew_in_mid_generation(ours)
    assert graphs == expected_graphs
    assert graphs[0] == 1
    assert graphs[-1] == ours.graphs
    for place, size in enumerate(case.sizes[1:], 1):
        assert graphs[place] - graphs[place - 1] <= (0 if size in case.sizes[:place] else 1)


def cases(*names: str, exhaustive: Sequence[str] = ()) -> Any:
    common = [pytest.param(CASES[name], id=name) for name in names]
    others = [pytest.param(CASES[name], id=name, marks=pytest.mark.exhaustive) for name in exhaustive]
    return pytest.mark.parametrize("case", [*common, *others])


@cases(
    "krea2",
    exhaustive=(
        "wild_video_dit", "wild_uvit", "wan", "flux batch, prompt", "flux2", "chroma", "sd3", "dit", "qwenimage",
        "wild_pixart", "wild_functional",
    ),
)  # fmt: skip
def test_dynamic_true_serves_every_size_as_if_it_were_the_only_one(case: Case) -> None:
    check(case, "true")


@cases("wild_mmdit", exhaustive=("flux", "flux batch, prompt", "wan", "krea2 prompt"))
def test_automatic_dynamic_serves_every_size_as_if_it_were_the_only_one(case: Case) -> None:
    check(case, "automatic")


@cases("flux")
def test_a_marked_dimension_is_compiled_once(case: Case) -> None:
    check(case, "marked")


@pytest.mark.exhaustive
def test_a_compiled_dynamic_graph_serves_two_resolutions() -> None:
    """The sizes of the stream are computed from those of the latents, which the deep blocks do not read."""
    case = CASES["wild_pixart"]
    model = case.build()
    options = DiCacheConfig(**REUSING, strict=True).options()
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=True, options=options)
    for size in case.sizes[:2]:
        entry = case.at(size)
        expected = Reference(model, entry, range(STEPS), DEEP, STEPS)
        for step, theirs in enumerate(expected.results):
            with torch.no_grad():
                ours = call(**entry.at_step(step, STEPS))
            # Compiled kernels round elsewhere than eager ones.
            torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-5)
    assert marks(model, last=2) == ["DD.D.D"] * 2
