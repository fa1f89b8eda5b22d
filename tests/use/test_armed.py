"""Steps of an announced generation that go straight to the compiled step: the same as the long way, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import Schedule, disable_cache, enable_cache, generation, stream, summary
from dicache_compile.armed import Armed, doors
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore:the model was compiled again", "ignore:[0-9]+ of the last")
STEPS = 6
WATCHED = [(nn.Module, name) for name in ("__setattr__", "_apply", "load_state_dict", "register_forward_hook")]
Change = Callable[[Any], Any]


class Model(models.SingleStream):
    """With what a user may change: a flag, a number, a buffer, a function, and what is passed besides tensors."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.register_buffer("shift", torch.full((16,), 0.25))
        self.strength = 1.0
        self.spare = nn.Linear(16, 16)

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        found = super().run(carried, first, last)
        x = found["x"] * self.strength + self.shift
        return {**found, "x": x.sin() if self.training else x}

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, scale: float = 1.0, more: Any = None
    ) -> Any:
        out = super().forward(hidden_states, timestep, prompt) * scale
        if isinstance(more, dict):
            out = out + sum((2.0 * place + 1.0) * value for place, value in enumerate(more.values()))
        elif more is not None:
            out = out + more[0] - 2 * more[1]
        return out


class Output(dict):  # type: ignore[type-arg]
    """A result of a class that nobody registered."""


@pytest.fixture
def model() -> Model:
    found = models.make(Model)
    assert isinstance(found, Model)
    return found


@pytest.fixture(autouse=True)
def doors_are_as_they_were() -> Iterator[None]:
    before = [vars(kind)[name] for kind, name in WATCHED]
    yield
    assert [vars(kind)[name] for kind, name in WATCHED] == before
    assert not doors._open
    assert not doors._watched


def enabled(model: nn.Module, **config: Any) -> Armed:
    enable_cache(model, **{"threshold": 0.0, "streams": 1, "compile": False, **config})
    armed = model._compiled_call_impl
    assert isinstance(armed, Armed)
    return armed


def arguments(model: Any, step: int, **sizes: int) -> dict[str, Any]:
    names = ("hidden_states", "timestep", "prompt")
    return dict(zip(names, models.inputs(model, step, STEPS, **sizes), strict=True))


def plainly(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the model gives as it is now, uncompiled."""
    return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


@torch.no_grad()
def test_all_steps_but_the_first_go_straight_and_give_the_same(model: Model) -> None:
    armed = enabled(model)
    for count in (1, 2):
        with generation(num_steps=STEPS):
            for step in range(STEPS):
                given = arguments(model, step)
                assert torch.equal(model(**given), plainly(model, **given))
        assert armed.calls == count * (STEPS - 1)
    assert [len(one.streams["main"]) for one in summary(model).generations] == [STEPS, STEPS]
    assert armed.reason is None


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [{"threshold": 0.3}, {"threshold": 0.3, "order": 2, "error": "estimate"}, {"schedule": Schedule.steps(0, 1, 4)}],
    ids=["line", "curve", "schedule"],
)
def test_decisions_and_results_are_those_of_the_long_way(config: dict[str, Any]) -> None:
    ours, theirs = models.make(Model), models.make(Model)
    armed = enabled(ours, **{"threshold": None, **config})
    enabled(theirs, **{"threshold": None, **config})
    theirs._compiled_call_impl = theirs._compiled_call_impl.inner  # type: ignore[union-attr]
    for _ in range(2):
        results = []
        for one in (ours, theirs):
            with generation(num_steps=STEPS):
                results.append([one(**arguments(one, step)) for step in range(STEPS)])
        assert all(map(torch.equal, *results))
    steps = [[step.deep for step in summary(one).generations[-1].streams["main"]] for one in (ours, theirs)]
    assert steps[0] == steps[1]
    assert False in steps[0]
    assert armed.calls == 2 * (STEPS - 1)


@torch.no_grad()
def test_without_an_announced_run_every_call_goes_the_long_way(model: Model) -> None:
    armed = enabled(model)
    for step in range(STEPS):
        given = arguments(model, step)
        assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 0


def often(names: Iterable[str], most: int) -> Iterator[Any]:
    """The first ones on every run of the tests, the others where all are run."""
    for count, name in enumerate(names):
        yield pytest.param(name, marks=() if count < most else pytest.mark.exhaustive)


def half(parameters: Any) -> None:
    for parameter in parameters:
        parameter.data.mul_(0.5)


def put(model: Any, path: str, value: Any) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, value)


CHANGES: dict[str, Change] = {
    "a number": lambda model: put(model, "strength", 0.5),
    "a buffer": lambda model: put(model, "shift", torch.ones(16)),
    "a parameter": lambda model: put(model, "blocks.2.mlp.0.bias", nn.Parameter(torch.ones(32), requires_grad=False)),
    "a hook": lambda model: model.blocks[2].register_forward_hook(lambda module, args, result: result * 2),
    "load_state_dict, assigned": lambda model: model.load_state_dict(
        models.make(Model, seed=5).state_dict(), assign=True
    ),
    "another forward": lambda model: put(model, "blocks.1.forward", lambda x, time: x * 2),
    "rewritten weights": lambda model: model._apply(lambda weight: weight + 1),
    "a buffer in place": lambda model: model.shift.mul_(3),
    "train": lambda model: model.train(),
    "parameters in place": lambda model: half(model.blocks[1].parameters()),
    "a submodule": lambda model: put(model, "blocks.3.mlp.1", nn.ReLU()),
    "an entry of a list": lambda model: model.blocks.__setitem__(2, model.blocks[1]),
    "a block that comes": lambda model: model.blocks.insert(1, model.blocks[3]),
    "a block that goes": lambda model: model.blocks.__delitem__(3),
    "load_state_dict": lambda model: model.load_state_dict(models.make(Model, seed=5).state_dict()),
    "load_state_dict of a block": lambda model: model.blocks[1].load_state_dict(
        models.make(Model, seed=5).blocks[1].state_dict(), assign=True
    ),
    "a hook of the model": lambda model: model.register_forward_hook(lambda module, args, result: result * 2),
    "a hook before": lambda model: model.blocks[2].register_forward_pre_hook(
        lambda module, args: (args[0] * 2, *args[1:])
    ),
    "to": lambda model: model.to(torch.float64).to(torch.float32).blocks[1].mlp.to(torch.float32),
    "another buffer": lambda model: (model.register_buffer("shift", torch.zeros(16)), None)[1],
    "another parameter": lambda model: (
        model.blocks[0].mlp[0].register_parameter("bias", nn.Parameter(torch.zeros(32), requires_grad=False))
    ),
    "another module": lambda model: model.blocks[0].mlp.add_module("1", nn.Tanh()),
    "spectral norm": lambda model: torch.nn.utils.parametrizations.weight_norm(model.blocks[1].mlp[0]),
}
IN_PLACE = {"a buffer in place", "parameters in place"}


@torch.no_grad()
@pytest.mark.parametrize("name", [*often(CHANGES, 8)])
def test_a_change_of_the_model_in_mid_generation_is_seen_at_once(name: str, model: Model) -> None:
    armed = enabled(model, compile=False, strict=False)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            if step == 3:
                before = plainly(model, **given)
                CHANGES[name](model)
                assert not torch.equal(plainly(model, **given), before) or name == "to"
            assert torch.equal(model(**given), plainly(model, **given)), f"step {step}"
    assert armed.calls == (STEPS - 1 if name in IN_PLACE else 2)
    if name == "a hook of the model":
        return  # with one, `Module.__call__` is another function, which always goes the long way
    # The next generation goes straight again, whatever the model is now.
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == (2 * STEPS - 2 if name in IN_PLACE else STEPS + 1)


@torch.no_grad()
@pytest.mark.parametrize("before", [False, True])
def test_a_hook_that_is_removed_in_mid_generation_runs_no_more(before: bool, model: Model) -> None:
    if before:
        hook = model.blocks[2].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    else:
        hook = model.blocks[2].register_forward_hook(lambda module, args, result: result * 2)
    other = models.make(Model).register_forward_hook(lambda module, args, result: None)
    armed = enabled(model, strict=False)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            if step == 2:
                other.remove()  # which changes nothing here
            if step == 3:
                hook.remove()
            assert torch.equal(model(**given), plainly(model, **given)), f"step {step}"
    assert armed.calls == 2


@torch.no_grad()
def test_what_changes_another_model_changes_nothing(model: Model) -> None:
    armed, other = enabled(model), models.make(Model)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            other.train()
            other.to(torch.float64)
            assert torch.equal(model(**arguments(model, step)), plainly(model, **arguments(model, step)))
    assert armed.calls == STEPS - 1


def strided(given: dict[str, Any]) -> dict[str, Any]:
    states = given["hidden_states"]
    return {**given, "hidden_states": states.transpose(1, 2).contiguous().transpose(1, 2)}


OTHERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "strides": strided,
    "a number": lambda given: {**given, "scale": 3.0},
    "the sign of zero": lambda given: {**given, "scale": -0.0},
    "a number's type": lambda given: {**given, "scale": 1},
    "one more": lambda given: {**given, "more": (given["hidden_states"], given["hidden_states"] + 1)},
    "the same twice": lambda given: {**given, "more": (given["hidden_states"], given["hidden_states"])},
    "a dict": lambda given: {**given, "more": {"a": given["hidden_states"], "b": given["hidden_states"] + 1}},
    "its order": lambda given: {**given, "more": {"b": given["hidden_states"], "a": given["hidden_states"] + 1}},
    "a list": lambda given: {**given, "more": [given["hidden_states"], given["hidden_states"] + 1]},
    "conjugated": lambda given: {**given, "hidden_states": torch._neg_view(given["hidden_states"])},
    "gradients": lambda given: {**given, "hidden_states": given["hidden_states"].clone().requires_grad_()},
}


@torch.no_grad()
@pytest.mark.parametrize("name", [*often(OTHERS, 5)])
def test_an_argument_of_another_kind_never_goes_the_way_of_others(name: str, model: Model) -> None:
    armed = enabled(model, strict=False)
    with generation(num_steps=STEPS):
        for step in range(2):
            model(**arguments(model, step))
        assert armed.calls == 1
        given = OTHERS[name](arguments(model, 2))
        assert torch.equal(model(**given), plainly(model, **given))
        assert armed.calls == 1
        usual = arguments(model, 3)
        assert torch.equal(model(**usual), plainly(model, **usual))


@torch.no_grad()
def test_an_argument_that_is_the_same_tensor_twice_is_told_from_two(model: Model) -> None:
    armed = enabled(model)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            second = given["hidden_states"] if step % 2 else given["hidden_states"] + 1
            given["more"] = (given["hidden_states"], second)
            assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == STEPS - 2


@torch.no_grad()
def test_a_shape_that_comes_back_goes_straight_again(model: Model) -> None:
    armed = enabled(model, streams="auto")
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            for name, tokens in (("short", 4), ("long", 6)):
                given = arguments(model, step, tokens=tokens)
                with stream(name):
                    assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 2 * (STEPS - 1)


@pytest.mark.parametrize(
    ("mode", "straight"),
    [
        (lambda: torch.autocast("cpu", torch.bfloat16), STEPS - 2),
        (torch.inference_mode, STEPS - 2),
        (torch.enable_grad, STEPS - 2),
        (lambda: torch.compiler.set_stance("force_eager"), 2),  # it runs no graph, which ends it
    ],
    ids=["autocast", "inference", "gradients", "stance"],
)
def test_another_mode_goes_the_long_way(mode: Any, straight: int, model: Model) -> None:
    armed = enabled(model, strict=False)
    with torch.no_grad(), generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            if step == 3:
                with mode():
                    assert torch.equal(model(**given), plainly(model, **given))
            else:
                assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == straight


class Counting(Model):
    """Changes something of its own on every call."""

    last: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.last = super().forward(*args, **kwargs)
        return self.last


class Noting(Model):
    """Changes a list that the caller passes."""

    def forward(self, *args: Any, notes: list[int], **kwargs: Any) -> Any:  # type: ignore[override]
        notes.append(len(notes))
        return super().forward(*args, **kwargs)


class Broken(Model):
    """Python runs in the middle of its call."""

    def leave(self, carried: models.Carried) -> Tensor:
        torch._dynamo.graph_break()
        return super().leave(carried)


class Odd(Model):
    """Gives something that is no tensor, and of a class of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return Output(sample=super().forward(*args, **kwargs))


class Computed(Model):
    """Gives a number that Python makes of what the model gives."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs), self


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, "it changes something of the model"),
        (Noting, "it changes something of the model"),
        (Broken, "a call runs 2 graphs"),
        (Odd, "the result holds a Output that its graph does not give"),
        (Computed, "the result holds a Computed that its graph does not give"),
    ],
)
def test_a_call_that_does_more_than_run_one_graph_always_goes_the_long_way(kind: type[Model], reason: str) -> None:
    model: Any = models.make(kind)
    armed = enabled(model, strict=False)
    more: dict[str, Any] = {"notes": []} if kind is Noting else {}
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            result = model(**arguments(model, step), **more)
            found = result["sample"] if kind is Odd else result[0] if kind is Computed else result
            if kind is Counting:
                assert model.last is result
            if kind is Noting:
                assert len(more["notes"]) == step + 1
            other = models.make(Model)
            assert torch.equal(found, other(**arguments(other, step)))
    assert armed.calls == 0
    assert reason in str(armed.reason)


@torch.no_grad()
def test_a_number_that_changes_on_every_step_always_goes_the_long_way(model: Model) -> None:
    armed = enabled(model, strict=False)
    with generation(num_steps=12):
        for step in range(12):
            given = {**arguments(model, min(step, STEPS - 1)), "scale": 1.0 + step}
            assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 0


@torch.no_grad()
def test_after_an_exception_the_run_is_over_and_the_next_one_is_its_own(model: Model) -> None:
    armed = enabled(model)

    def interrupted() -> None:
        with generation(num_steps=STEPS):
            for step in range(3):
                model(**arguments(model, step))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not doors._watched
    put(model, "strength", 0.5)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 2 + STEPS - 1


@torch.no_grad()
def test_a_cache_that_is_disabled_in_mid_generation_leaves_the_model_as_it_was(model: Model) -> None:
    enabled(model)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            if step == 3:
                disable_cache(model)
                put(model, "strength", 0.5)
            given = arguments(model, step)
            assert torch.equal(model(**given), plainly(model, **given))


@torch.no_grad()
def test_a_run_inside_of_a_run_has_ways_of_its_own(model: Model) -> None:
    armed = enabled(model)
    with generation(num_steps=STEPS):
        for step in range(2):
            model(**arguments(model, step))
        with generation(num_steps=STEPS):
            put(model, "strength", 0.5)
            for step in range(STEPS):
                given = arguments(model, step)
                assert torch.equal(model(**given), plainly(model, **given))
        for step in range(2, 4):  # that change was of the outer run, too
            given = arguments(model, step)
            assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 1 + STEPS - 1


@torch.no_grad()
def test_two_threads_have_runs_and_ways_of_their_own(model: Model) -> None:
    armed, turn, failed = enabled(model, streams="auto"), threading.Lock(), []

    def run(name: str, seed: int) -> None:
        with torch.no_grad(), generation(name, num_steps=STEPS):
            for step in range(STEPS):
                given = arguments(model, step, seed=seed)
                with turn:  # calls of one model must not overlap
                    found, wanted = model(**given), plainly(model, **given)
                if not torch.equal(found, wanted):
                    failed.append((name, step))

    threads = [threading.Thread(target=run, args=(f"r{n}", n)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert armed.calls == 2 * (STEPS - 1)


@torch.no_grad()
def test_inside_of_another_compiled_function_it_is_traced_as_before(model: Model) -> None:
    armed = enabled(model, strict=False)

    def around(given: dict[str, Any]) -> Any:
        return model(**given) + 1

    outer = torch.compile(around, backend="eager")
    with generation(num_steps=STEPS):
        for step in range(3):
            given = arguments(model, step)
            assert torch.equal(outer(given), plainly(model, **given) + 1)
            assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 2
