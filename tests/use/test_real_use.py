"""What people do with compiled diffusers models: new weights, and inputs besides the latents; on tiny random models.

Each step is held against the same model uncompiled: bit for bit where the step runs deep, up to rounding where it is
reused, by DiCache's rule written with forward hooks.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import dicache_backend, generation, reset, summary
from tests.helpers import shared
from tests.helpers.published import published

diffusers = pytest.importorskip("diffusers", reason="the models are diffusers'")
given = pytest.importorskip("zoo.given", reason="the models' sizes and calls are the zoo's")
entry = pytest.importorskip("zoo.entry")

pytestmark = pytest.mark.shares_traces
PATTERN = "DD.D.D"  # what the forced steps of `compiled` are: D deep, . reused
STEPS = len(PATTERN)
SIZES = {
    "flux": {"num_layers": 2, "num_single_layers": 1},
    "sd3": {"num_layers": 3},
    "dit_transformer2d": {"num_layers": 2},
}
Make = Callable[[int], dict[str, Any]]


def build(name: str) -> Any:
    """A model of the zoo, as shallow as a trunk may be; the same weights on every call."""
    found = given.description(name)
    torch.manual_seed(0)
    model = getattr(diffusers, found["model"])(**{**found["init"], **SIZES[name]})
    return model.eval().requires_grad_(False)


def at(name: str, dtype: torch.dtype | None = None, **more: Any) -> Make:
    """The arguments of a step, by its number; the latents and the like in `dtype`."""
    model = entry.Entry(name, given.description(name)["model"], partial(build, name), partial(given.call, name))

    def arguments(step: int) -> dict[str, Any]:
        call = {**model.at_step(step, STEPS), "return_dict": False, **more}
        cast = {key for key, value in call.items() if isinstance(value, Tensor) and value.is_floating_point()}
        return {key: value.to(dtype) if key in cast and "ids" not in key else value for key, value in call.items()}

    return arguments


def compiled(model: nn.Module, backend: Any = None, fullgraph: bool = True, apart: bool = False, **config: Any) -> Any:
    """`apart`: traced for this test alone, which is about what Dynamo does, such as with a second number."""
    settings = {"lowering": "eager", "strict": True, "threshold": math.inf, "warmup_steps": 2, **config}
    found = published(**{"max_consecutive_skips": 1, **settings})
    if backend is not None or not fullgraph:
        return torch.compile(model, backend=backend or dicache_backend, fullgraph=fullgraph, options=found.options())
    if apart or found.lowering == "inductor":
        return shared.compiled_apart(model, found.options())
    return shared.compiled(model, found.options())


class Reference:
    """DiCache around an uncompiled model, by forward hooks; the caller says which steps run deep."""

    def __init__(self, model: Any, probe_depth: int = 1) -> None:
        blocks = model.transformer_blocks
        self.model, self.first, self.probe = model, blocks[0], blocks[probe_depth - 1]
        self.last = getattr(model, "single_transformer_blocks", blocks)[-1]
        self.seen: dict[str, Tensor] = {}
        self.anchors: list[tuple[Tensor, Tensor]] = []  # (residual, probe residual), newest last

    @torch.no_grad()
    def __call__(self, deep: bool, **arguments: Any) -> Tensor:
        hooks = (
            self.first.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.probe.register_forward_hook(self._probe),
            self.last.register_forward_hook(partial(self._leave, deep)),
        )
        try:
            return self.model(**arguments)[0]
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen["x"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    def _probe(self, _: nn.Module, __: Any, result: Any) -> None:
        self.seen["h"] = result if isinstance(result, Tensor) else result[1]

    def _leave(self, deep: bool, _: nn.Module, __: Any, result: Any) -> Any:
        x, h = self.seen["x"], self.seen["h"]
        y = result if isinstance(result, Tensor) else result[1]
        if deep:
            self.anchors.append(((y.float() - x.float()).to(x.dtype), (h.float() - x.float()).to(x.dtype)))
            return None
        newest, probe_newest = (part.float() for part in self.anchors[-1])
        older, probe_older = (part.float() for part in self.anchors[-2])
        moved = (h.float() - x.float() - probe_older).abs().mean()
        gamma = (moved / (probe_newest - probe_older).abs().mean()).clamp(1.0, 1.5)
        stand_in = (x.float() + older + gamma * (newest - older)).to(y.dtype)
        return stand_in if isinstance(result, Tensor) else (result[0], stand_in)


def marks(model: nn.Module, generation: int = -1) -> str:
    (steps,) = summary(model).generations[generation].streams.values()
    return "".join(".D"[step.deep] for step in steps)


def assert_follows(
    call: Any, model: Any, make: Make, reference: Reference | None = None, steps: Iterable[int] = range(STEPS)
) -> Reference:
    """Runs the steps of a generation, each held against the reference, which is given back for those that follow."""
    reference = reference or Reference(model)
    for step in steps:
        arguments, deep = make(step), PATTERN[step] == "D"
        expected = reference(deep, **arguments)
        with torch.no_grad():
            ours = call(**arguments)[0]
        assert (ours.dtype, ours.stride()) == (expected.dtype, expected.stride())
        bound = 0 if deep else 16 * torch.finfo(ours.dtype).eps * expected.abs().max().item()
        assert (ours.float() - expected.float()).abs().max().item() <= bound, f"step {step}"
    assert marks(model) == PATTERN[: step + 1]
    return reference


def shaken(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight + 0.05 * torch.randn_like(weight) for name, weight in model.state_dict().items()}


# Weights


def test_weights_changed_in_place_between_generations_are_followed_without_a_recompile() -> None:
    model = build("flux")
    call = compiled(model, apart=True)
    assert_follows(call, model, at("flux"))
    with torch._dynamo.config.patch(error_on_recompile=True):
        model.load_state_dict(shaken(model))
        assert_follows(call, model, at("flux"))
        for name, weight in shaken(model).items():
            model.get_parameter(name).data.copy_(weight)
        assert_follows(call, model, at("flux"))
        for name, weight in shaken(model).items():
            model.get_parameter(name).data = weight
        assert_follows(call, model, at("flux"))
    assert len(summary(model).generations) == 4


def test_weights_changed_in_mid_generation_are_those_of_the_next_step() -> None:
    model = build("flux")
    call = compiled(model)
    reference = assert_follows(call, model, at("flux"), steps=range(4))
    model.load_state_dict(shaken(model))
    # Step 4 is reused: its probe and epilogue run with the new weights, what stands in for the deep blocks are still
    # the residuals that the old ones left. Step 5 runs deep, with the new weights only.
    assert_follows(call, model, at("flux"), reference, steps=range(4, STEPS))
    assert_follows(call, model, at("flux"))


def test_replaced_weights_modules_and_blocks_are_followed_and_the_old_ones_freed() -> None:
    model = build("flux")
    call = compiled(model)
    assert_follows(call, model, at("flux"))
    old = [weakref.ref(weight) for weight in model.parameters()]
    model.load_state_dict(shaken(model), assign=True)
    assert_follows(call, model, at("flux"))
    gc.collect()
    assert not any(weight() is not None for weight in old)
    # Whichever weight it is that the package knows the model by.
    for name, weight in shaken(model).items():
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(weight, requires_grad=False))
    assert_follows(call, model, at("flux"))
    model.transformer_blocks[0].attn.to_q = nn.Linear(32, 32).requires_grad_(False)
    assert_follows(call, model, at("flux"))
    model.transformer_blocks[1] = build("flux").transformer_blocks[0]
    assert_follows(call, model, at("flux"))


# Inputs besides the latents


def flux_residuals(doubles: int, singles: int) -> Make:
    """Residuals of a ControlNet that are others on every step."""
    generator = torch.Generator().manual_seed(3)
    tokens = given.call("flux")["hidden_states"].shape[1]
    found = [torch.randn(1, tokens, 32, generator=generator) for _ in range(doubles + singles)]

    def arguments(step: int) -> dict[str, Any]:
        now = [0.3 * (1 + step % 3) * residual for residual in found]
        return {
            **at("flux")(step),
            "controlnet_block_samples": now[:doubles] or None,
            "controlnet_single_block_samples": now[doubles:] or None,
        }

    return arguments


def test_controlnet_residuals_may_change_on_every_step_and_come_and_go() -> None:
    model = build("flux")
    call = compiled(model)
    for doubles, singles in ((2, 1), (0, 0), (1, 0), (2, 1)):
        assert_follows(call, model, flux_residuals(doubles, singles))
    assert len(summary(model).generations) == 4


def test_controlnet_residuals_inside_the_probe_start_no_generation() -> None:
    model = build("flux")
    call = compiled(model, probe_depth=2)
    assert_follows(call, model, flux_residuals(2, 1), Reference(model, probe_depth=2))
    assert len(summary(model).generations) == 1


@pytest.mark.filterwarnings("ignore:the model was compiled again")
@pytest.mark.parametrize("announced", [False, True])
def test_a_controlnet_that_begins_or_ends_in_mid_generation_leaves_no_anchors(announced: bool) -> None:
    """Where the run is announced it goes on, and its steps are counted on."""
    model = build("flux")
    call = compiled(model)
    expected = "DDD.D." if announced else "DDDD.D"  # in a run that goes on, one anchor is enough after the first
    for before, after in ((flux_residuals(2, 1), at("flux")), (at("flux"), flux_residuals(2, 1))):
        with torch.no_grad(), generation(num_steps=STEPS) if announced else nullcontext():
            for step in range(STEPS):
                arguments = before(step) if step < 2 else after(step)
                ours, plain = call(**arguments)[0], model(**arguments)[0]
                assert torch.equal(ours, plain) == (expected[step] == "D")
    runs = [marks(model, i) for i in range(len(summary(model).generations))]
    assert runs == ([expected] if announced else [expected[:2], expected[2:]]) * 2


@pytest.mark.exhaustive
def test_the_residuals_of_another_model_family_too() -> None:
    model = build("sd3")
    call = compiled(model)
    tokens, width = model.pos_embed.height * model.pos_embed.width, model.inner_dim
    residuals = [torch.randn(1, tokens, width) for _ in range(3)]

    def controlled(step: int) -> dict[str, Any]:
        return {**at("sd3")(step), "block_controlnet_hidden_states": [0.3 * (1 + step % 3) * r for r in residuals]}

    assert_follows(call, model, controlled)
    assert_follows(call, model, at("sd3"))


def test_an_ip_adapter_is_part_of_the_model() -> None:
    model = build("flux")
    inner, joint, image = model.inner_dim, model.config.joint_attention_dim, 6
    projection = {"proj.weight": torch.randn(4 * joint, image), "proj.bias": torch.randn(4 * joint)}
    norm = {"norm.weight": torch.ones(joint), "norm.bias": torch.zeros(joint)}
    attention = {
        f"{block}.to_{part}_ip.{kind}": 0.3 * torch.randn(*((inner, joint) if kind == "weight" else (inner,)))
        for block in range(len(model.transformer_blocks))
        for part in "kv"
        for kind in ("weight", "bias")
    }
    weights = {"image_proj": {**projection, **norm}, "ip_adapter": attention}
    model._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    call = compiled(model)
    picture = torch.randn(1, 1, image)

    def guided(step: int, strength: float = 0.0) -> dict[str, Any]:
        embeddings = [(1 + strength * step) * picture]
        return {**at("flux")(step), "joint_attention_kwargs": {"ip_adapter_image_embeds": embeddings}}

    assert_follows(call, model, guided)
    reset(model)
    assert_follows(call, model, partial(guided, strength=0.1))
    for processor in model.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.3]
    assert_follows(call, model, guided)
