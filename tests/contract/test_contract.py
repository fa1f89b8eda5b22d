"""The contract of the design, on every engine, in the eager lowering, which is bit-exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, reset, stream, summary
from tests import models
from tests.helpers import shared
from tests.helpers.cells import cells
from tests.helpers.published import published
from tests.models import Model
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
ENGINES = ("calls", "cond", "graphs", "conditional")
DTYPES = (torch.float32, torch.bfloat16)
ERRORS = (("probe", 1), ("probe_minus_input", 1), ("estimate", 1), ("estimate", 2))  # and the estimate's order
STEPS = 10
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_model = pytest.mark.parametrize("kind", models.ALL)


KINDS = (models.Mixed, *(kind for kind in models.ALL if kind is not models.Mixed))  # first the one with most in it
each_model_and_engine = cells("kind, engine", KINDS, ENGINES)
each_model_engine_and_dtype = cells("kind, engine, dtype", KINDS, ENGINES, DTYPES)


def compiled(model: Model, apart: bool = False, **config: Any) -> Any:
    """`apart`: traced for this test alone, which is about what Dynamo does, such as with a second shape."""
    # Of `Skips`, whose blocks do not add, the residual is not the better form: it is said, not held against the truth.
    said: dict[str, Any] = {"carried": "residual"} if isinstance(model, models.Skips) and "rules" not in config else {}
    found = published(**{"lowering": "eager", "strict": True, **said, **config})
    if apart or found.lowering == "inductor":
        return shared.compiled_apart(model, found.options())
    return shared.compiled(model, found.options())


@torch.no_grad()
def generate(call: Any, model: Model, steps: int = STEPS, **kinds: Any) -> list[Tensor]:
    return [call(*models.inputs(model, step, steps, **kinds)) for step in range(steps)]


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Equal but for the order of float32 operations before a result is rounded to the model's dtype.

    A stream that rounds to the neighbouring number is off by one eps of its largest value; the epilogue's norm and two
    linears of width 16 turn that into a few eps of the result.
    """
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        bound = 16 * torch.finfo(b.dtype).eps * b.abs().max().item()
        assert (a - b).abs().max().item() <= bound, f"step {step}"


@each_model_engine_and_dtype
def test_threshold_zero_is_bit_identical_to_the_model(kind: type[Model], engine: str, dtype: torch.dtype) -> None:
    model = models.make(kind, dtype)
    ours = generate(compiled(model, threshold=0.0, engine=engine), model)
    for a, b in zip(ours, generate(model, model), strict=True):
        assert torch.equal(a, b)


@each_model_engine_and_dtype
def test_reusing_all_runs_exactly_the_forced_steps_and_equals_the_oracle(
    kind: type[Model], engine: str, dtype: torch.dtype
) -> None:
    model = models.make(kind, dtype)
    call = compiled(model, threshold=math.inf, max_consecutive_skips=None, warmup_steps=2, engine=engine)
    oracle = PlainDiCache(model, math.inf, warmup=2)
    assert_near(generate(call, model), generate(oracle, model))
    steps = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in steps] == oracle.deep == [True] * 2 + [False] * (STEPS - 2)


@cells("engine, probe_depth", ENGINES, [1, 0])
def test_deep_steps_and_no_limit_are_the_whole_schedule(engine: str, probe_depth: int) -> None:
    model = models.make(models.TwoStream)
    schedule: dict[str, Any] = {"deep_steps": (1, 3, 4, 7), "probe_depth": probe_depth, "order": 2}
    free = {"warmup_steps": 0, "max_consecutive_skips": None}
    call = compiled(model, threshold=math.inf, engine=engine, **schedule, **free)
    oracle = PlainDiCache(model, math.inf, warmup=0, **schedule)
    assert_near(generate(call, model), generate(oracle, model))
    steps = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in steps] == oracle.deep == [step in (0, 1, 3, 4, 7) for step in range(STEPS)]
    assert [step.forced for step in steps] == oracle.deep


@cells("engine, probe_depth, share", ENGINES, [1, 0], [0.4, 1.0])
def test_feedback_gives_back_in_every_generation_as_the_oracle(engine: str, share: float, probe_depth: int) -> None:
    model = models.make(models.TwoStream)
    options: dict[str, Any] = {"probe_depth": probe_depth, "feedback": share, "gamma_range": (1.0, 4.0)}
    # Runs of reused steps after one anchor, two and three, two deep steps in a row, and reused ones at the end.
    options["deep_steps"] = (2, 5, 6)
    free = {"warmup_steps": 0, "max_consecutive_skips": None}
    call = compiled(model, threshold=math.inf, engine=engine, **options, **free)
    for _ in range(2):  # the second is not given what the first one's last steps lacked
        oracle = PlainDiCache(model, math.inf, warmup=0, **options)
        assert_near(generate(call, model), generate(oracle, model))
        assert oracle.deep == [step in (0, 2, 5, 6) for step in range(STEPS)]


@cells("kind, engine, dtype, errors", KINDS, ENGINES, DTYPES, ERRORS)
def test_a_threshold_between_decides_and_estimates_as_the_oracle(
    kind: type[Model], engine: str, dtype: torch.dtype, errors: tuple[Any, Any]
) -> None:
    error, order = errors
    model = models.make(kind, dtype)
    dense = PlainDiCache(model, 0.0, error=error, order=order)
    generate(dense, model)
    typical = sorted(e for e in dense.errors if e is not None)[len(dense.errors) // 2]
    threshold = 2.5 * typical
    call = compiled(model, threshold=threshold, max_consecutive_skips=3, error=error, order=order, engine=engine)
    oracle = PlainDiCache(model, threshold, max_skips=3, error=error, order=order)
    assert_near(generate(call, model), generate(oracle, model))
    steps = summary(call).generations[-1].streams["0"]
    assert [step.deep for step in steps] == oracle.deep
    assert 0 < sum(oracle.deep) < STEPS
    for step, expected, gamma in zip(steps, oracle.errors, oracle.gammas, strict=True):
        assert step.error == (pytest.approx(expected, rel=1e-5) if expected is not None else None)
        assert step.gamma == (pytest.approx(gamma, rel=1e-5) if gamma is not None else None)


@cells("kind, depth", KINDS, (3, 0, 1, 2, 4, 5))
def test_a_deeper_probe_measures_what_leaves_it(kind: type[Model], depth: int) -> None:
    model = models.make(kind, depth=6)
    call = compiled(model, threshold=math.inf, max_consecutive_skips=2, probe_depth=depth)
    oracle = PlainDiCache(model, math.inf, probe_depth=depth, max_skips=2)
    assert_near(generate(call, model), generate(oracle, model))
    steps = summary(model).generations[-1].streams["0"]
    for step, expected, gamma in zip(steps, oracle.errors, oracle.gammas, strict=True):
        assert step.error == (pytest.approx(expected, rel=1e-5) if expected is not None else None)
        assert step.gamma == (pytest.approx(gamma, rel=1e-5) if gamma is not None else None)


@each_model_and_engine
def test_a_deep_step_after_probing_equals_the_uncached_step(kind: type[Model], engine: str) -> None:
    model = models.make(kind)
    call = compiled(model, threshold=math.inf, max_consecutive_skips=1, warmup_steps=2, engine=engine)
    ours, plain = generate(call, model), generate(model, model)
    steps = summary(model).generations[-1].streams["0"]
    for step, a, b in zip(steps, ours, plain, strict=True):
        assert torch.equal(a, b) == step.deep
    assert [step.deep for step in steps] == [True, True, *[False, True] * (STEPS // 2 - 1)]


@each_model
def test_no_block_runs_twice_and_every_block_runs_once(kind: type[Model]) -> None:
    from dicache_compile.calls.session import sessions_of
    from dicache_compile.graph import operators

    def attentions(graph: torch.fx.Graph) -> int:
        return sum(operators.name(node) == "scaled_dot_product_attention" for node in graph.nodes)

    model = models.make(kind)
    call = compiled(model)
    generate(call, model, steps=1)
    program = sessions_of(model)[-1].last_cut.program
    assert attentions(program.piece("P").graph_module.graph) == 1
    assert attentions(program.piece("DE").graph_module.graph) == model.depth - 1
    assert attentions(program.piece("RE").graph_module.graph) == 0


@each_model_and_engine
def test_two_streams_side_by_side_equal_each_alone(kind: type[Model], engine: str) -> None:
    model = models.make(kind)
    config = {"threshold": 0.3, "engine": engine}
    call = compiled(model, **config)
    alone = []
    for seed in (1, 2):
        reset(model)
        alone.append(generate(call, model, seed=seed))
    reset(model)
    for step in range(STEPS):
        for name, seed, expected in (("a", 1, alone[0]), ("b", 2, alone[1])):
            with torch.no_grad(), stream(name):
                assert torch.equal(call(*models.inputs(model, step, STEPS, seed=seed)), expected[step])


@each_engine
def test_two_models_never_meet(engine: str) -> None:
    one, two = models.make(models.SingleStream, seed=1), models.make(models.SingleStream, seed=2)
    config = {"threshold": 0.3, "engine": engine}
    alone = [generate(compiled(model, **config), model) for model in (one, two)]
    for model in (one, two):
        reset(model)
    calls = [compiled(model, **config) for model in (one, two)]
    for step in range(STEPS):
        for call, model, expected in zip(calls, (one, two), alone, strict=True):
            with torch.no_grad():
                assert torch.equal(call(*models.inputs(model, step, STEPS)), expected[step])


@each_model_and_engine
def test_the_same_seed_gives_the_same_result_twice(kind: type[Model], engine: str) -> None:
    model = models.make(kind)
    call = compiled(model, threshold=0.3, engine=engine)
    first, second = generate(call, model), generate(call, model)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(summary(model).generations) == 2


@each_engine
def test_a_generation_after_another_prompt_is_as_if_it_were_the_first(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3, engine=engine)
    alone = generate(call, model, seed=5)
    generate(call, model, seed=6)
    again = generate(call, model, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


@pytest.mark.filterwarnings("ignore:the last generations of stream")
@cells("engine, seed", ENGINES, [6, 5])  # another prompt, and the same
def test_an_abandoned_generation_leaves_nothing_for_the_next(engine: str, seed: int) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3, engine=engine)
    expected = generate(call, model, seed=5)
    for done in range(1, STEPS):
        reset(model)
        with torch.no_grad():
            for step in range(done):
                call(*models.inputs(model, step, STEPS, seed=seed))
        again = generate(call, model, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True)), f"after {done} steps"


def test_state_is_allocated_once_and_bounded() -> None:
    from dicache_compile.calls.session import sessions_of

    model = models.make(models.TwoStream)
    call = compiled(model, threshold=0.3)
    seen = set()
    for _ in range(2):
        for step in range(STEPS):
            with torch.no_grad():
                call(*models.inputs(model, step, STEPS))
            state = sessions_of(model)[-1].streams["0"].tensors
            seen.add(tuple(tensor.data_ptr() for tensor in state.values()))
    assert len(seen) == 1
    assert sum(tensor.shape == (2, 6, 16) for tensor in state.values()) == 5


@each_model
def test_one_graph_and_no_recompile_after_the_first_step(kind: type[Model]) -> None:
    model = models.make(kind)
    graphs = []

    def counting(gm: torch.fx.GraphModule, examples: Any, **options: Any) -> Any:
        graphs.append(gm)
        return dicache_backend(gm, examples, **options)

    options = DiCacheConfig(lowering="eager", carried="residual").options()
    call = torch.compile(model, backend=counting, fullgraph=True, options=options)
    generate(call, model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        generate(call, model)
    assert len(graphs) == 1


@each_engine
def test_cached_steps_change_none_of_their_inputs(engine: str) -> None:
    model = models.make(models.Controlled)
    call = compiled(model, threshold=math.inf, engine=engine)
    for step in range(STEPS):
        arguments = models.inputs(model, step, STEPS)
        before = [a.clone() for a in arguments[:3]] + [c.clone() for c in arguments[3]]
        with torch.no_grad():
            call(*arguments)
        for a, b in zip([*arguments[:3], *arguments[3]], before, strict=True):
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:the error was infinite")
@each_engine
def test_nan_in_the_probe_runs_deep_and_does_not_stick(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, max_consecutive_skips=None, engine=engine)
    with torch.no_grad():
        for step in range(5):
            call(*models.inputs(model, step, STEPS))
        latents, *rest = models.inputs(model, 5, STEPS)
        call(torch.full_like(latents, float("nan")), *rest)
    steps = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in steps] == [True] * 3 + [False] * 2 + [True]
    assert all(torch.isfinite(out).all() for out in generate(call, model))


@each_engine
def test_a_constant_input_gives_a_finite_estimate(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, engine=engine, streams=1)
    latents, _, prompt = models.inputs(model, 0, STEPS)
    with torch.no_grad():
        # The timestep moves too little to change anything, so that both anchors are the same.
        out = [call(latents, torch.full((2,), 1 - step * 1e-7), prompt) for step in range(6)]
    assert all(torch.isfinite(o).all() for o in out)
