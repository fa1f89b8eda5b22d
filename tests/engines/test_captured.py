"""The engines that capture, on a stand-in for CUDA: what is recorded, when, for whom, and what else happens instead."""

from __future__ import annotations

import copy
import gc
import logging
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, explain, reset, stream, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.engines import choice
from dicache_compile.engines.recording import Recording
from dicache_compile.engines.static_inputs import static_inputs
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import compiled, generate
from tests.fakes.recording_device import RecordingDevice

pytestmark = pytest.mark.shares_traces
STEPS = 12
RECORDED = ["warm_up", "capture", "capture", "capture"]
each_captured = pytest.mark.parametrize("engine", ["graphs", "conditional"])


@contextmanager
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`engine="auto"` begins on the highest rung, as it does on CUDA."""
    built = choice.CapturedEngine

    def unforced(*arguments: Any, forced: bool, **named: Any) -> Any:
        return built(*arguments, forced=False, **named)

    monkeypatch.setattr(choice, "CapturedEngine", unforced)
    yield


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def recordings(model: models.Model) -> dict[str, Recording]:
    return {name: state.recording for name, state in sessions_of(model)[-1].streams.items()}


def test_a_step_is_one_launch_and_is_captured_once(captures: RecordingDevice) -> None:
    model = models.make(models.Mixed)
    call = compiled(model, threshold=0.3, engine="conditional")
    generate(call, model, steps=STEPS)
    generate(call, model, steps=STEPS, seed=3)
    assert captures.done == [*RECORDED, "branch_on_device", *["launch"] * 2 * STEPS]
    assert explain(call).engine == "conditional"
    assert explain(call).engine_reason is None


def test_the_graphs_engine_launches_twice_and_looks_in_between(captures: RecordingDevice) -> None:
    model = models.make(models.Mixed)
    generate(compiled(model, threshold=0.3, engine="graphs"), model, steps=STEPS)
    assert captures.done == [*RECORDED, "branch_on_host", *["two launches"] * STEPS]


@each_captured
def test_outputs_are_the_callers_to_keep(engine: str) -> None:
    model = models.make(models.Controlled)
    call = compiled(model, threshold=0.3, engine=engine)
    kept, copies = [], []
    for step in range(STEPS):
        with torch.no_grad():
            kept.append(call(*models.inputs(model, step, STEPS)))
        copies.append(kept[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("engine", [pytest.param("graphs", marks=pytest.mark.exhaustive), "conditional"])
def test_two_hundred_mixed_steps_equal_the_calls_engine_exactly(engine: str) -> None:
    model = models.make(models.TwoStream)
    expected = steps_of(compiled(model, apart=True, threshold=0.4, engine="calls"), model)
    torch._dynamo.reset()
    ours = steps_of(compiled(model, apart=True, threshold=0.4, engine=engine), model)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    deep = [step.deep for g in summary(model).generations for steps in g.streams.values() for step in steps]
    assert 20 < sum(deep) < 180


def steps_of(call: Any, model: models.Model) -> list[Tensor]:
    """Ten generations of ten steps of two streams that differ in shape."""
    found = []
    for seed in range(10):
        for step in range(10):
            for name, tokens in (("cond", 6), ("uncond", 8)):
                with torch.no_grad(), stream(name):
                    found.append(call(*models.inputs(model, step, 10, seed=seed, tokens=tokens)))
    return found


@each_captured
def test_a_capture_serves_one_stream_and_one_shape(engine: str, captures: RecordingDevice) -> None:
    model = models.make(models.SingleStream)
    options = DiCacheConfig(threshold=0.3, engine=engine, lowering="eager").options()
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=False, options=options)
    for tokens in (6, 8, 6, 8):
        for name in ("cond", "uncond"):
            with stream(name):
                generate(call, model, tokens=tokens)
    assert captures.done.count("warm_up") == 4


@each_captured
def test_a_stream_that_gets_its_earlier_shape_back_starts_a_generation(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=0.3, engine=engine, streams=1)
    alone = generate(call, model, tokens=6, seed=2)
    reset(model)
    with torch.no_grad():
        for step in range(5):
            call(*models.inputs(model, step, STEPS, tokens=6, seed=1))
    generate(call, model, tokens=8)
    again = generate(call, model, tokens=6, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(again, alone, strict=True))
    assert [step.index for step in summary(model).generations[-1].streams["main"]] == list(range(10))


@each_captured
def test_a_stream_that_gives_way_leaves_its_captures_to_the_next(engine: str, captures: RecordingDevice) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3, engine=engine)
    expected = {seed: generate(call, model, seed=seed) for seed in (1, 2, 3)}
    reset(model)
    captures.done.clear()
    for request in [*range(20), 0]:
        with stream(f"request {request}"):
            ours = generate(call, model, seed=request % 3 + 1)
        assert_equals(ours, expected[request % 3 + 1])
    assert captures.done.count("warm_up") == DiCacheConfig.max_streams
    runs = [steps for g in summary(model).generations for steps in g.streams.values()]
    assert sum(len(steps) for steps in runs) == 10 * (3 + 21)
    assert all([step.index for step in steps] == list(range(10)) for steps in runs)


def test_streams_that_give_way_in_inference_mode_can_be_used_outside_of_it() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, engine="conditional")
    for number in range(DiCacheConfig.max_streams + 1):
        with stream(f"r{number}"), torch.inference_mode():
            call(*models.inputs(model, 0, STEPS))
    reset(model)
    with stream("r0"):
        generate(call, model, steps=2)


@pytest.mark.parametrize("smallest", [torch.bfloat16, torch.float16, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_inputs_of_several_dtypes_are_copied_bit_for_bit_as_whole_numbers(smallest: torch.dtype) -> None:
    inputs = [
        torch.randn(3, 4).to(smallest),
        torch.tensor([-1, 40000, 32000]),
        torch.tensor([[1.0, float("nan")]]),
        torch.tensor(7.0),
        torch.randn(2, 1, 3).expand(2, 5, 3),
        torch.randn(4, 6).t(),
        torch.tensor([True, False]),
        torch.randn(257, 256).to(smallest),
    ]
    fixed = static_inputs(inputs, range(len(inputs)))
    fixed.fill(inputs)
    assert len(inputs) - 1 not in fixed.fused  # which one thread block would copy by itself
    assert not any(target.dtype.is_floating_point for target in fixed.targets)
    for place, given in enumerate(inputs):
        ours = fixed.tensors[place]
        assert (ours.stride(), ours.dtype) == (given.stride(), given.dtype)
        for part, expected in ((ours.contiguous(), given.contiguous()),):
            bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (part, expected)]
            assert torch.equal(*bits)


@each_captured
def test_changes_of_weights_in_place_are_seen(engine: str, captures: RecordingDevice) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.0, engine=engine)
    generate(call, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert_equals(generate(call, model), generate(model, model))
    assert captures.done.count("warm_up") == 1


@each_captured
@pytest.mark.parametrize("how", ["data", "assign", "wholly"])
def test_weights_that_moved_are_captured_anew(engine: str, how: str, captures: RecordingDevice) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.0, engine=engine)
    generate(call, model, steps=3)
    other = models.make(models.SingleStream, seed=5)
    with torch.no_grad():
        if how == "data":
            model.blocks[2].mlp[0].weight.data = other.blocks[2].mlp[0].weight.data
        elif how == "assign":
            model.load_state_dict(other.state_dict(), assign=True)
        else:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone() * 1.5
    assert_equals(generate(call, model), generate(model, model))
    assert captures.done.count("warm_up") == 2


def test_weights_that_move_between_all_calls_are_called(
    captures: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.make(models.SingleStream)
    with as_on_cuda(monkeypatch):
        call = compiled(model, threshold=0.0, engine="conditional")
        for step in range(8):
            model.blocks[2].mlp[0].weight.data = model.blocks[2].mlp[0].weight.data.clone()
            arguments = models.inputs(model, step, 8)
            with torch.no_grad():
                assert torch.equal(call(*arguments), model(*arguments))
    assert captures.done.count("warm_up") == 3
    told = explain(call)
    assert told.engine == "calls"
    assert "every call comes with weights that move, self.blocks.2.mlp.0.weight" in str(told.engine_reason)


def test_an_engine_asked_for_by_name_does_not_give_up_in_silence_where_weights_move() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, engine="conditional")

    def moving() -> None:
        for _ in range(8):
            model.blocks[2].mlp[0].weight.data = model.blocks[2].mlp[0].weight.data.clone()
            generate(call, model, steps=1)

    for _ in range(2):
        with pytest.raises(StepError, match="every call comes with weights that move"):
            moving()
        assert explain(call).engine == "conditional"


class Noisy(models.SingleStream):
    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> models.Carried:
        return super().enter(hidden_states + 0 * torch.rand_like(hidden_states), timestep, prompt)


class Writing(models.SingleStream):
    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> models.Carried:
        return super().enter(hidden_states.mul_(2), timestep, prompt)


class Counting(models.SingleStream):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.register_buffer("seen", torch.zeros(()))

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> models.Carried:
        self.seen.add_(1)
        return super().enter(hidden_states + 0 * self.seen, timestep, prompt)


class Reading(models.SingleStream):
    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> models.Carried:
        return super().enter(hidden_states * prompt.sum().item(), timestep, prompt)


class OnTheHost(models.SingleStream):
    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> models.Carried:
        scale = torch.arange(4, device="cpu").float().cos()
        return super().enter(hidden_states * scale.to(hidden_states.device), timestep, prompt)


@pytest.mark.parametrize(
    ("kind", "device", "reason"),
    [
        (Noisy, "cpu", r"it draws random numbers \(test_captured.py"),
        (Writing, "cpu", r"it writes to its input hidden_states \(test_captured.py"),
        (Counting, "cpu", r"it writes to its input self.seen \(test_captured.py"),
        (Reading, "cpu", r"it reads a value on the host \(test_captured.py"),
        (OnTheHost, "meta", r"it computes on cpu and not on meta \(test_captured.py"),
    ],
)
def test_what_a_capture_would_not_do_again_is_refused_with_its_line(
    kind: type[models.Model], device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicache_compile.engines.capturable.DEVICES", (device,))
    model = models.make(kind).to(device)
    arguments = [argument.to(device) for argument in models.inputs(model, 0, STEPS)]
    call = compiled(model, engine="conditional")
    scalars = torch._dynamo.config.patch(capture_scalar_outputs=True)
    with scalars, torch.no_grad(), pytest.raises(Exception, match=reason):
        call(*arguments)


@each_captured
def test_forgetting_frees_what_was_captured(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3, engine=engine)
    for forget in (lambda: reset(model), torch._dynamo.reset):
        generate(call, model, steps=3)
        alive = weakref.ref(recordings(model)["0"])
        forget()
        assert alive() is None


@each_captured
def test_captures_die_with_the_model(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3, engine=engine)
    generate(call, model, steps=3)
    alive = weakref.ref(recordings(model)["0"])
    del model, call
    gc.collect()
    assert alive() is None


@each_captured
def test_a_step_that_fails_leaves_no_capture_behind(engine: str, captures: RecordingDevice) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3, engine=engine)
    expected = generate(call, model)
    captures.refuses = {"launch": "lost", "two launches": "lost"}
    with pytest.raises(RuntimeError, match="lost"):
        generate(call, model, steps=1)
    captures.refuses = {}
    again = generate(call, model)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert captures.done.count("warm_up") == 2


@pytest.mark.parametrize(
    ("refused", "engine", "launches"),
    [("branch_on_device", "graphs", ["two launches"] * STEPS), ("capture", "calls", []), ("warm_up", "calls", [])],
)
def test_what_cannot_be_had_is_stepped_down_from_once_with_the_reason(
    refused: str,
    engine: str,
    launches: list[str],
    captures: RecordingDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.make(models.Mixed)
    expected = generate(compiled(model, threshold=0.3, engine="calls"), model, steps=STEPS)
    reset(model)
    captures.refuses = {refused: "no such\nnode"}
    logged = Lines()
    logging.getLogger("dicache_compile").addHandler(logged)
    with as_on_cuda(monkeypatch):
        call = compiled(model, threshold=0.3, engine="conditional")
        ours = generate(call, model, steps=STEPS)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert [what for what in captures.done if "launch" in what] == launches
    assert captures.done.count("warm_up") == 1
    logging.getLogger("dicache_compile").removeHandler(logged)
    assert logged.lines == [f"a step runs on the engine '{engine}', not 'conditional': RuntimeError: no such node"]
    assert explain(call).engine == engine
    assert str(explain(call)).endswith(f"engine     {engine} (RuntimeError: no such node)")
    assert captures.abandoned == (refused != "branch_on_device")


def test_each_shape_has_its_own_rung(captures: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(models.SingleStream)
    with as_on_cuda(monkeypatch):
        call = compiled(model, apart=True, engine="conditional")
        generate(call, model, tokens=6, steps=2)  # the second size makes Dynamo take sizes as numbers
        captures.done.clear()
        captures.refuses = {"branch_on_device": "no"}
        generate(call, model, tokens=8)
        captures.refuses = {}
        generate(call, model, tokens=10)
        assert (explain(call).engine, explain(call).engine_reason) == ("conditional", None)
        generate(call, model, tokens=8)
        assert (explain(call).engine, explain(call).engine_reason) == ("graphs", "RuntimeError: no")
    assert captures.done.count("two launches") == 20
    assert captures.done.count("launch") == 10


def test_steps_down_to_calls_when_neither_branch_can_be_had(
    captures: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.make(models.Mixed)
    captures.refuses = {"branch_on_device": "one", "branch_on_host": "two"}
    with as_on_cuda(monkeypatch):
        call = compiled(model, threshold=0.0, engine="conditional")
        assert_equals(generate(call, model), generate(model, model))
    assert explain(call).engine == "calls"
    assert explain(call).engine_reason == "RuntimeError: one; RuntimeError: two"


@each_captured
@pytest.mark.parametrize("refused", ["warm_up", "capture", "branch"])
def test_an_engine_asked_for_by_name_fails_where_it_cannot_be_had(
    engine: str, refused: str, captures: RecordingDevice
) -> None:
    if refused == "branch":
        refused = {"graphs": "branch_on_host", "conditional": "branch_on_device"}[engine]
    captures.refuses = {refused: "no such node"}
    model = models.make(models.SingleStream)
    with pytest.raises(StepError, match=f"engine='{engine}' cannot run this model: RuntimeError: no such node"):
        generate(compiled(model, engine=engine), model, steps=1)


@each_captured
def test_a_captured_engine_on_the_cpu_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicache_compile.engines.capturable.DEVICES", ("cuda",))
    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match=f"engine='{engine}' cannot run this model: the model is on cpu"):
        generate(compiled(model, engine=engine), model, steps=1)


def test_on_the_cpu_the_engine_is_calls_without_a_reason() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)
    generate(call, model, steps=1)
    assert (explain(call).engine, explain(call).engine_reason) == ("calls", None)


@each_captured
def test_captures_made_in_inference_mode_serve_calls_outside_of_it(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, engine=engine, streams=1)
    oracle = compiled(copy.deepcopy(model), threshold=math.inf, engine="calls", streams=1)
    for step in range(STEPS):
        arguments = models.inputs(model, step, STEPS)
        with torch.inference_mode() if step % 2 else torch.no_grad():
            assert torch.equal(call(*arguments), oracle(*arguments))


def assert_equals(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
