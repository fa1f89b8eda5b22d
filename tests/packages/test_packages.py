"""A package decides and gives what the compiled model does, without it."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import zoo
from dicache_compile import (
    DiCacheConfig,
    Schedule,
    SiteRule,
    configure,
    enable_cache,
    explain,
    generation,
    load_package,
    report,
    reset,
    save_package,
    stream,
    summary,
)
from dicache_compile.estimators import GuidanceDifference, Reuse
from tests import models
from tests.contract.test_contract import generate
from tests.helpers.unpacked import kept

STEPS = 6
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept(monkeypatch, tmp_path)


def packed(model: Any, call: dict[str, Any] | tuple[Any, ...], path: Path, **how: Any) -> Any:
    if isinstance(call, tuple):
        save_package(model, path, *call, **how)
    else:
        save_package(model, path, **call, **how)
    return load_package(path)


def decisions(model: Any) -> list[dict[str, list[bool]]]:
    return [
        {name: [step.deep for step in steps] for name, steps in one.streams.items()}
        for one in summary(model).generations
    ]


@torch.no_grad()
def guided(call: Call, entry: zoo.Entry) -> list[Tensor]:
    """Two generations with the two calls of guidance, whose prompts differ."""
    found: list[Tensor] = []
    for _ in range(2):
        with generation(num_steps=STEPS):
            for step in range(STEPS):
                for name, sign in (("cond", 1), ("uncond", -1)):
                    inputs = entry.at_step(step, STEPS)
                    inputs["encoder_hidden_states"] = sign * inputs["encoder_hidden_states"]
                    with stream(name):
                        found += tree_leaves(call(**inputs, return_dict=False))
    return found


@pytest.mark.parametrize("name", ["flux", "wan", "sd3"])
def test_a_package_of_a_diffusers_model_is_the_compiled_model_to_the_bit(name: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    entry = zoo.entries()[name]
    model = entry.build()
    config = DiCacheConfig(threshold=1.0, num_steps=STEPS, lowering="eager", strict=True)
    model.compile(backend="dicache", fullgraph=True, options=config.options())
    package = packed(model, {**entry.at_step(0, STEPS), "return_dict": False}, tmp_path / "model.pt2")
    theirs, ours = guided(model, entry), guided(package, entry)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert decisions(package) == decisions(model)
    both = [deep for one in decisions(model) for steps in one.values() for deep in steps]
    assert len(both) == 4 * STEPS
    assert 0 < sum(both) < len(both)


CONFIGS: dict[str, dict[str, Any]] = {
    "the script's rule": {"threshold": 0.3},
    "two anchors, kept in another dtype": {"threshold": 0.3, "order": 2, "state_dtype": torch.bfloat16},
    "a schedule, which the host knows": {"schedule": Schedule.steps(0, 1, 3), "estimator": Reuse()},
    "two rules": {"rules": (SiteRule(sites=(0, 2), threshold=0.2), SiteRule(sites=(2, 4), threshold=0.5))},
    "each stream by itself": {"threshold": 0.3, "joint": False},
    "blocks compiled once": {"threshold": 0.3, "blocks": "once"},
    "one stream": {"threshold": 0.3, "streams": 1},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_package_has_the_rule_of_the_compiled_model(config: dict[str, Any], tmp_path: Path) -> None:
    model = models.make(models.Mixed)
    options = DiCacheConfig(**config, num_steps=STEPS, lowering="eager", strict=True).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    package = packed(call, models.inputs(model, 0, STEPS), tmp_path / "model.pt2")
    for _ in range(2):
        theirs, ours = (generate(one, model, steps=STEPS) for one in (call, package))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert decisions(package) == decisions(call)


def small(path: Path, kind: type[models.Model] = models.SingleStream, **how: Any) -> tuple[Any, models.Model]:
    """A package of a small model, and the model."""
    model = models.make(kind, depth=3)
    options = DiCacheConfig(threshold=0.3, num_steps=STEPS, lowering="eager", strict=True).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    save_package(call, path, *models.inputs(model, 0, STEPS), **how)
    return call, model


def test_guidance_of_one_call_from_the_other_is_in_the_package(tmp_path: Path) -> None:
    model = models.make(models.SingleStream)
    fields: dict[str, Any] = {"sites": "model", "estimator": GuidanceDifference(), "schedule": Schedule.steps(0, 2)}
    options = DiCacheConfig(**fields, num_steps=STEPS, lowering="eager", strict=True).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    package = packed(call, models.inputs(model, 0, STEPS), tmp_path / "model.pt2")
    found: dict[Any, list[Tensor]] = {call: [], package: []}
    for one, outputs in found.items():
        with torch.no_grad(), generation(num_steps=STEPS):
            for step in range(STEPS):
                latents, time, prompt = models.inputs(model, step, STEPS)
                for name, sign in (("cond", 1), ("uncond", -1)):
                    with stream(name):
                        outputs.append(one(latents, time, sign * prompt))
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))
    assert decisions(package) == decisions(call)
    assert not all(decisions(call)[0]["uncond"])


def test_all_pieces_use_the_one_copy_of_each_weight(tmp_path: Path) -> None:
    _, model = small(tmp_path / "model.pt2")
    package = load_package(tmp_path / "model.pt2")
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    places = sorted((one.data_ptr(), one.numel() * one.element_size()) for one in package.buffers())
    assert all(start + length <= after for (start, length), (after, _) in itertools.pairwise(places))
    assert sum(length for _, length in places) == size  # each is there once,
    assert places[-1][0] - places[0][0] < size + 64 * len(places)  # side by side as in the file
    assert dict(package.named_buffers()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("given", ["model", "state dict"])
def test_a_package_without_weights_takes_those_of_the_model_as_they_are(given: str, tmp_path: Path) -> None:
    call, model = small(tmp_path / "with.pt2")
    save_package(call, tmp_path / "model.pt2", *models.inputs(model, 0, STEPS), weights=False)
    own = sum(one.numel() * one.element_size() for one in model.parameters())
    assert (tmp_path / "with.pt2").stat().st_size - (tmp_path / "model.pt2").stat().st_size > own
    package = load_package(tmp_path / "model.pt2", model if given == "model" else model.state_dict())
    pointers = {name: one.data_ptr() for name, one in model.named_parameters()}
    assert {name: one.data_ptr() for name, one in package.named_buffers()} == pointers
    theirs, ours = (generate(one, model, steps=STEPS) for one in (call, package))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Tabled(models.SingleStream):
    """Has tensors that are in no state dict."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.register_buffer("table", torch.randn(1, 1, 4), persistent=False)
        self.plain = torch.randn(1, 1, 4)

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> Tensor:
        return super().forward(hidden_states + self.table + self.plain, timestep, prompt)


def test_what_no_state_dict_has_is_in_every_package(tmp_path: Path) -> None:
    call, model = small(tmp_path / "model.pt2", Tabled, weights=False)
    package = load_package(tmp_path / "model.pt2", model.state_dict())
    theirs, ours = (generate(one, model, steps=STEPS) for one in (call, package))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_weights_that_are_missing_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, model = small(tmp_path / "model.pt2", weights=False)
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"has no weights \(embed_prompt.weight, say\)"):
        load_package(tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"embed\.bias has to be .*, and is not there"):
        load_package(tmp_path / "model.pt2", {name: one for name, one in state.items() if name != "embed.bias"})
    for other in (state["embed.bias"].double(), state["embed.bias"][:-1]):
        needs = r"embed\.bias has to be float32 of \[16\] with strides \[1\] on cpu, and is "
        with pytest.raises(ValueError, match=needs + r"(float64 of \[16\]|float32 of \[15\])"):
            load_package(tmp_path / "model.pt2", {**state, "embed.bias": other})
    with pytest.raises(TypeError, match="weights: expected a model or a state dict, got str"):
        load_package(tmp_path / "model.pt2", "weights.pt")  # type: ignore[arg-type]


def test_other_weights_can_be_copied_over_those_of_a_package(tmp_path: Path) -> None:
    small(tmp_path / "model.pt2")
    package = load_package(tmp_path / "model.pt2")
    other = models.make(models.SingleStream, depth=3, seed=1)
    package.load_state_dict(other.state_dict())
    options = DiCacheConfig(threshold=0.3, num_steps=STEPS, lowering="eager", strict=True).options()
    call = torch.compile(other, backend="dicache", fullgraph=True, options=options)
    theirs, ours = (generate(one, other, steps=STEPS) for one in (call, package))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(TypeError, match="a package keeps its tensors"):
        package.load_state_dict(other.state_dict(), assign=True)
    with pytest.raises(TypeError, match="stays on its device and of its dtype"):
        package.half()


def test_a_weight_that_another_took_the_place_of_is_never_run_as_it_was(tmp_path: Path) -> None:
    _, model = small(tmp_path / "model.pt2")
    package, given = load_package(tmp_path / "model.pt2"), models.inputs(model, 0, STEPS)
    half = {name: weight / 2 for name, weight in package.named_buffers()}
    with torch.no_grad():
        expected = package(*given)
        with pytest.raises(TypeError, match="a package keeps its tensors"):
            torch.func.functional_call(package, half, given)
        assert torch.equal(package(*given), expected)
        package.get_submodule("blocks.1.mlp.0").weight = half["blocks.1.mlp.0.weight"]
        with pytest.raises(TypeError, match="a package keeps its tensors"):
            package(*given)


def test_the_callers_autocast_is_ignored(tmp_path: Path) -> None:
    _, model = small(tmp_path / "model.pt2")
    package, given = load_package(tmp_path / "model.pt2"), models.inputs(model, 0, STEPS)
    expected = package(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(package(*given), expected)
        assert not torch.equal(model(*given), expected)


def test_a_package_is_neither_copied_nor_enabled(tmp_path: Path) -> None:
    _, model = small(tmp_path / "model.pt2")
    package = load_package(tmp_path / "model.pt2")
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a package is not copied or pickled: load it again"):
            copied(package)
    model.forward = package.forward
    for one in (package, model):
        with pytest.raises(ValueError, match=r"model runs a package, which has its cache: configure\(package"):
            enable_cache(one)


class Many(models.SingleStream):
    """Takes and returns more than tensors side by side."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, text: dict[str, Tensor], scale: float = 2.0, ids: Any = None
    ) -> dict[str, Any]:
        out = super().forward(hidden_states * scale, timestep, text["prompt"])
        return {"out": [out], "scale": scale, "none": None, "two": (out + 1, 3)}


def test_arguments_and_results_have_the_form_that_they_had(tmp_path: Path) -> None:
    model = models.make(Many, depth=3)
    latents, time, prompt = models.inputs(model, 0, STEPS)
    package = packed(model, (latents, time, {"prompt": prompt}), tmp_path / "model.pt2")
    with torch.no_grad():
        expected = model(latents, time, {"prompt": prompt})
        by_name = package(timestep=time, hidden_states=latents, text={"prompt": prompt}, scale=2.0)
        turned = package(latents.mT.contiguous().mT, time, {"prompt": prompt})
    for found in (by_name, turned):
        assert found.keys() == expected.keys()
        assert torch.equal(found["out"][0], expected["out"][0])
        assert torch.equal(found["two"][0], expected["two"][0])
        assert (found["scale"], found["none"], found["two"][1]) == (2.0, None, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scale": 3.0}, ValueError, "scale: the package was made for 2.0, got 3.0: make one for it"),
        ({"scale": 2}, TypeError, "scale: expected 2.0, got 2"),
        ({"ids": torch.ones(1)}, TypeError, "ids: expected None, got a Tensor"),
        ({"text": [torch.ones(1)]}, TypeError, "text: expected a dict, got a list"),
        ({"text": {"other": torch.ones(1)}}, ValueError, "text: expected prompt, got other"),
        ({"text": {"prompt": None}}, TypeError, "text.prompt: expected a tensor, got None"),
        (
            {"hidden_states": torch.ones(1, 6, 4)},
            ValueError,
            r"expected float32 of \[2, 6, 4\] on cpu, got",
        ),
        ({"hidden_states": torch.ones(2, 6, 4).half()}, ValueError, "got float16 of .* make a package for this"),
        ({"more": 1}, TypeError, "more"),
    ],
)
def test_a_call_of_another_form_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = models.make(Many, depth=3)
    latents, time, prompt = models.inputs(model, 0, STEPS)
    call = {"hidden_states": latents, "timestep": time, "text": {"prompt": prompt}}
    package = packed(model, call, tmp_path / "model.pt2")
    with pytest.raises(error, match=message):
        package(**{**call, **change})


def test_a_package_is_reset_changed_and_reported_as_a_model_is(tmp_path: Path) -> None:
    _, model = small(tmp_path / "model.pt2")
    package = load_package(tmp_path / "model.pt2")
    generate(package, model, steps=STEPS)
    assert not all(decisions(package)[0]["0"])
    configure(package, threshold=0.0)
    exact = generate(package, model, steps=STEPS)
    assert all(torch.equal(a, b) for a, b in zip(exact, generate(model, model, steps=STEPS), strict=True))
    report(package, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size
    assert explain(package).deep == ("blocks.1", "blocks.2")
    configure(package, threshold=1e9)
    generate(package, model, steps=STEPS - 1)
    reset(package)
    package(*models.inputs(model, STEPS - 1, STEPS))
    assert decisions(package)[-1] == {"0": [True]}


def test_a_pipeline_is_packed_by_a_run_of_it_and_runs_the_package(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.use.test_pipelines import flux, run

    pipe, arguments = flux()
    pipe.set_progress_bar_config(disable=True)
    options = DiCacheConfig(threshold=0.5, lowering="eager", strict=True).options()
    pipe.transformer.compile(backend="dicache", fullgraph=True, options=options)
    save_package(pipe, tmp_path / "flux.pt2", **arguments, num_inference_steps=STEPS)
    other, _ = flux()
    other.set_progress_bar_config(disable=True)
    package = load_package(tmp_path / "flux.pt2", other.transformer)
    other.transformer.forward = package.forward
    for seed in range(2):
        pictures = [run(one, arguments, steps=STEPS, seed=seed) for one in (pipe, other)]
        assert torch.equal(*pictures)
    assert decisions(package) == decisions(pipe.transformer)
    assert {"cond", "uncond"} == decisions(package)[0].keys()


class Idle:
    """A pipeline that calls nothing."""

    def __init__(self, **components: Any) -> None:
        self.components = components

    def __call__(self, **_: Any) -> None:
        pass


def test_a_pipeline_that_does_not_call_its_model_or_has_two_is_refused(tmp_path: Path) -> None:
    call, _ = small(tmp_path / "model.pt2")
    other, _ = small(tmp_path / "model.pt2")
    with pytest.raises(TypeError, match="this call of the Idle did not call its model"):
        save_package(Idle(transformer=call), tmp_path / "model.pt2")
    with pytest.raises(TypeError, match=r"transformer, transformer_2 are compiled: give it pipe\.transformer"):
        save_package(Idle(transformer=call, transformer_2=other), tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.pt2, got model.zip"):
        save_package(call, tmp_path / "model.zip")
