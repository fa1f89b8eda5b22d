"""What cannot be cut runs as it would without us, and says why."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import compile_fx
from torch._inductor.compile_worker.subproc_pool import SubprocException
from torch._inductor.exc import InductorError

from dicache_compile import dicache_backend, explain, stream, summary
from dicache_compile.errors import UncachedWarning, UnsupportedGraphError
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.published import published
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces


class Perceptron(nn.Module):
    """No transformer at all, and not small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(16)))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden_states) + timestep.sin()


def eager(**config: Any) -> dict[str, Any]:
    return published(lowering="eager", **config).options()


def test_a_graph_without_a_trunk_runs_uncached_with_one_warning() -> None:
    model = Perceptron().eval().requires_grad_(False)
    call = torch.compile(model, backend=dicache_backend, options=eager())
    arguments = (torch.randn(2, 8), torch.ones(()))
    with pytest.warns(UncachedWarning, match="runs uncached: no repeated transformer block found") as caught:
        ours = [call(*arguments) for _ in range(3)]
    assert all(torch.equal(result, model(*arguments)) for result in ours)
    assert len(caught) == 1
    assert summary(model).generations == []
    assert str(summary(model)).startswith("no generation recorded: this model runs uncached: no repeated transformer")


def test_strict_raises_instead() -> None:
    model = Perceptron().eval().requires_grad_(False)
    call = torch.compile(model, backend=dicache_backend, options=eager(strict=True))
    with pytest.raises(Exception, match="no repeated transformer block found") as caught:
        call(torch.randn(2, 8), torch.ones(()))
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, UnsupportedGraphError):
        cause = cause.__cause__ or getattr(cause, "inner_exception", None)
    assert isinstance(cause, UnsupportedGraphError)


def test_training_runs_uncached_with_its_gradients() -> None:
    model = models.make(models.SingleStream).requires_grad_(True)
    call = torch.compile(model, backend=dicache_backend, options=eager())
    arguments = models.inputs(model, 0, STEPS)
    with pytest.warns(UncachedWarning, match="gradients are enabled .*; run the model under torch.no_grad"):
        call(*arguments).sum().backward()
    ours = model.embed.weight.grad
    model.zero_grad()
    model(*arguments).sum().backward()
    assert torch.equal(ours, model.embed.weight.grad)


def test_a_model_without_gradients_is_cached_outside_of_no_grad_too() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)
    call(*models.inputs(model, 0, STEPS))
    assert len(summary(model).generations) == 1


def test_inference_mode_and_no_grad_may_alternate() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3)
    expected = generate(call, model)
    with torch.inference_mode():
        ours = [call(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(generate(call, model), expected, strict=True))


class Broken(models.SingleStream):
    """A graph break on each side of the trunk."""

    def enter(self, *args: Any) -> models.Carried:
        carried = super().enter(*args)
        torch._dynamo.graph_break()
        return carried

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        carried = self.enter(hidden_states, timestep, prompt)
        x = carried["x"] + sum(wave.mean() for wave in (timestep.sin(), timestep.cos()))
        for block in self.blocks:
            x = block(x, carried["time"])
        torch._dynamo.graph_break()
        return self.leave({**carried, "x": x})


def test_small_fragments_around_a_graph_break_stay_silent_and_the_trunk_is_cached() -> None:
    model = models.make(Broken)
    call = torch.compile(model, backend=dicache_backend, options=eager(threshold=10.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncachedWarning)
        generate(call, model)
    # The graph of the trunk ends at a break too: it runs once before it is known to be the heaviest.
    steps = summary(model).generations[-1].streams["0"]
    assert "".join(".D"[step.deep] for step in steps) == "DDD...D.."
    assert explain(model, *models.inputs(model, 0, STEPS)).graphs == 3
    last = explain(model)  # which has seen the trunk's graph alone
    assert last.graphs is None
    assert str(last).startswith("cached, in one of several graphs\n")


class Refined(models.SingleStream):
    """Blocks of a refiner, then a graph break, then those of the trunk."""

    def __init__(self, depth: int = 4, **sizes: int) -> None:
        super().__init__(depth, **sizes)
        self.refiner = nn.ModuleList(models.Block(self.width, 2) for _ in range(2))

    def enter(self, *args: Any) -> models.Carried:
        carried = super().enter(*args)
        x = carried["x"]
        for block in self.refiner:
            x = block(x, carried["time"])
        return {**carried, "x": x}

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        carried = self.enter(hidden_states, timestep, prompt)
        torch._dynamo.graph_break()
        return self.leave(self.run(carried, 0, self.depth))


@pytest.mark.parametrize("name", [None, "timestep"])
def test_a_refiner_in_a_graph_of_its_own_is_not_cached_and_the_trunk_gets_its_timestep(name: str | None) -> None:
    model = models.make(Refined)
    call = torch.compile(model, backend=dicache_backend, options=eager(threshold=10.0, timestep_input=name))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncachedWarning)
        ours = generate(call, model)
    oracle = PlainDiCache(model, threshold=10.0, max_skips=3)
    expected = [oracle(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
    assert [step.deep for step in summary(model).generations[-1].streams["0"]] == oracle.deep
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    found = explain(model, *models.inputs(model, 0, STEPS))
    assert (found.trunk, found.timestep, found.graphs) == (("blocks",), None, 2)
    # Another generation, told by the timestep of the first graph.
    again = generate(call, model)
    assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))


class RefinedText(Refined):
    """Its refiner has more blocks than the trunk, over the few tokens of the prompt."""

    def __init__(self, depth: int = 2, **sizes: int) -> None:
        super().__init__(depth, **sizes)
        self.refiner = nn.ModuleList(models.Block(self.width, 2) for _ in range(3))

    def enter(self, *args: Any) -> models.Carried:
        carried = models.SingleStream.enter(self, *args)
        text = carried["text"]
        for block in self.refiner:
            text = block(text, carried["time"])
        return {**carried, "time": carried["time"] + text.mean(1)}


@pytest.mark.parametrize(("kind", "tokens"), [(Refined, (6,)), (RefinedText, (6,)), (Refined, (6, 8))], ids=str)
def test_of_trunks_in_several_graphs_the_one_with_most_work_is_cached_and_of_equal_ones_the_last(
    kind: type[models.SingleStream], tokens: tuple[int, ...]
) -> None:
    model = models.make(kind, depth=2)
    call = torch.compile(model, backend=dicache_backend, options=eager(threshold=10.0), dynamic=False)
    oracles = {size: PlainDiCache(model, threshold=10.0, max_skips=3) for size in tokens}
    with torch.no_grad():
        for step in range(STEPS):
            for size, oracle in oracles.items():
                with stream(str(size)):
                    ours = call(*models.inputs(model, step, STEPS, tokens=size))
                torch.testing.assert_close(ours, oracle(*models.inputs(model, step, STEPS, tokens=size)))
    for size, oracle in oracles.items():
        assert [step.deep for step in summary(model).generations[-1].streams[str(size)]] == oracle.deep
    assert explain(model, *models.inputs(model, 0, STEPS)).trunk == ("blocks",)


def test_a_model_in_small_pieces_says_why_on_its_second_call() -> None:
    class Pieces(models.SingleStream):
        def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
            x = carried["x"]
            for block in self.blocks[first:last]:
                torch._dynamo.graph_break()
                x = block(x, carried["time"])
            return {**carried, "x": x}

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            carried = self.enter(*args)
            torch._dynamo.graph_break()
            return self.leave(self.run(carried, 0, self.depth))

    model = models.make(Pieces)
    call = torch.compile(model, backend=dicache_backend, options=eager())
    with torch.no_grad():
        expected = model(*models.inputs(model, 0, STEPS))
        assert torch.equal(call(*models.inputs(model, 0, STEPS)), expected)
        with pytest.warns(UncachedWarning, match=r"Dynamo broke the model's graph at test_fallback.py:\d+"):
            assert torch.equal(call(*models.inputs(model, 0, STEPS)), expected)
    strict = torch.compile(models.make(Pieces), backend=dicache_backend, options=eager(strict=True))
    with torch.no_grad():
        strict(*models.inputs(model, 0, STEPS))
        with pytest.raises(UnsupportedGraphError, match="no repeated transformer block"):
            strict(*models.inputs(model, 0, STEPS))


def test_the_graph_of_a_refused_model_is_what_torch_compile_would_run() -> None:
    class Refused(models.SingleStream):
        def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
            return super().run({**carried, "x": nn.functional.dropout(carried["x"], 0.0)}, 0, 1)

    model = models.make(Refused, depth=1)
    call = torch.compile(model, backend=dicache_backend, options=eager())
    with pytest.warns(UncachedWarning, match="only one transformer block"):
        ours = generate(call, model)
    assert all(torch.equal(a, b) for a, b in zip(ours, generate(model, model), strict=True))
    told = explain(model, *models.inputs(model, 0, STEPS))
    assert not told.cached
    assert told.reason == (
        "only one transformer block found (blocks.0): nothing to skip; if there are more blocks, name all lists of "
        "them with trunk="
    )
    assert str(told) == f"not cached: {told.reason}"


def test_an_error_of_a_process_that_compiles_kernels_is_told_by_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = "Traceback (most recent call last):\n  File ...\nValueError: a number is out of range\n"

    def failing(*_: Any, **__: Any) -> None:
        raise InductorError(SubprocException(trace, "kernel"), None)

    monkeypatch.setattr(compile_fx, "compile_fx", failing)
    model = models.make(models.SingleStream)
    call = compiled(model, lowering="inductor", strict=True)
    with torch.no_grad(), pytest.raises(Exception, match="part of the cut graph: ValueError: a number is out of range"):
        call(*models.inputs(model, 0, STEPS))


@pytest.mark.exhaustive
def test_whatever_error_a_piece_does_not_compile_with_the_model_runs_uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = compile_fx.compile_fx, []

    def failing_once(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        if len(tried) == 1:
            raise ValueError("Cannot view a tensor with these strides\nand more")
        return real(*args, **kwargs)

    monkeypatch.setattr(compile_fx, "compile_fx", failing_once)
    model = models.make(models.SingleStream, depth=2)
    call = compiled(model, lowering="inductor", strict=False)
    with torch.no_grad(), pytest.warns(UncachedWarning, match="cut graph: ValueError: Cannot view a tensor"):
        call(*models.inputs(model, 0, STEPS))
    assert len(tried) == 2  # a piece, and the model as it was
