"""LoRAs of compiled diffusers models: switched, scaled, fused, taken away, and swapped hot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import dicache_backend, summary
from tests.use.test_real_use import STEPS, Reference, assert_follows, at, build, compiled

peft = pytest.importorskip("peft", reason="diffusers loads LoRAs with peft")

LAYERS = ["to_q", "to_v", "proj_out", "proj_mlp", "net.2", "linear"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
    pytest.mark.shares_traces,
]


def lora(rank: int = 2, layers: list[str] | None = None) -> Any:
    return peft.LoraConfig(r=rank, lora_alpha=3, target_modules=layers or LAYERS, init_lora_weights=False)


def state_dict(seed: int, rank: int, model: Any = None, layers: list[str] | None = None) -> dict[str, Tensor]:
    """A LoRA as a file of it would be read; it is taken from `model`, which keeps it."""
    model = build("flux") if model is None else model
    torch.manual_seed(seed)
    model.add_adapter(lora(rank, layers), "any")
    found = peft.utils.get_peft_model_state_dict(model, adapter_name="any")
    return {f"transformer.{name}": weight.clone() for name, weight in found.items()}


@contextmanager
def changes(model: Any) -> Iterator[None]:
    """What happens inside changes what the model gives."""
    with torch.no_grad():
        before = model(**at("flux")(0))[0]
        yield
        assert not torch.equal(model(**at("flux")(0))[0], before)


@pytest.mark.exhaustive
def test_adapters_are_switched_scaled_mixed_and_disabled() -> None:
    model = build("flux")
    model.add_adapter(lora(), "a")
    model.add_adapter(lora(), "b")
    call = compiled(model, apart=True)
    assert_follows(call, model, at("flux"))
    for name, strengths in (("a", None), ("b", None), (["a", "b"], [0.5, 0.7]), (["a", "b"], [0.9, 0.1])):
        with changes(model):
            model.set_adapter(name) if strengths is None else model.set_adapters(name, strengths)
        assert_follows(call, model, at("flux"))
    with changes(model):
        model.disable_adapters()
    assert_follows(call, model, at("flux"))
    with changes(model):
        model.enable_adapters()
    assert_follows(call, model, at("flux"))
    assert len(summary(model).generations) == 7


def test_an_adapter_is_added_fused_and_taken_away_after_compiling() -> None:
    model = build("flux")
    call = compiled(model)
    assert_follows(call, model, at("flux"))
    with changes(model):
        model.add_adapter(lora(), "a")
    assert_follows(call, model, at("flux"))
    model.fuse_lora()
    assert_follows(call, model, at("flux"))
    model.unfuse_lora()
    assert_follows(call, model, at("flux"))
    with changes(model):
        model.unload_lora()
    assert_follows(call, model, at("flux"))


@pytest.mark.exhaustive
def test_the_strength_may_come_with_the_call_and_be_another_on_the_next() -> None:
    model = build("flux")
    model.add_adapter(lora(), "a")
    call = compiled(model, apart=True)
    for strength in (0.5, 0.25, 0.75):
        assert_follows(call, model, at("flux", joint_attention_kwargs={"scale": strength}))
    assert_follows(call, model, at("flux"))


@pytest.mark.exhaustive
def test_an_adapter_of_the_patch_embedding_and_the_modulation() -> None:
    model = build("sd3")
    model.add_adapter(lora(layers=["to_q", "pos_embed.proj", "norm1.linear"]), "a")
    call = compiled(model)
    assert_follows(call, model, at("sd3"))


def test_a_hot_swap_between_generations_leaves_nothing_of_the_adapter_before() -> None:
    graphs = []

    def counting(gm: torch.fx.GraphModule, examples: Any, **options: Any) -> Any:
        graphs.append(gm)
        return dicache_backend(gm, examples, **options)

    model = build("flux")
    model.enable_lora_hotswap(target_rank=4)
    model.load_lora_adapter(state_dict(1, rank=2), adapter_name="style")
    call = compiled(model, backend=counting)
    assert_follows(call, model, at("flux"))
    for seed, rank in ((2, 4), (3, 3), (1, 2)):
        with changes(model):
            model.load_lora_adapter(state_dict(seed, rank), adapter_name="style", hotswap=True)
        fresh = build("flux")
        fresh.load_lora_adapter(state_dict(seed, rank), adapter_name="other")
        # The first step of a generation meets no anchor; later ones would show those of the adapter before.
        reference = Reference(model)
        assert_follows(call, model, at("flux"), reference)
        assert len(reference.anchors) == 4
        with torch.no_grad():
            for step in (1, 3):  # deep; the ranks are padded with zeros, so sums are taken in another order
                ours, theirs = model(**at("flux")(step))[0], fresh(**at("flux")(step))[0]
                torch.testing.assert_close(ours, theirs)
    assert len(graphs) == 1
    assert len(summary(model).generations) == 4


def test_a_hot_swap_in_mid_generation_takes_effect_with_the_next_step() -> None:
    model = build("flux")
    model.enable_lora_hotswap(target_rank=4)
    model.load_lora_adapter(state_dict(1, rank=2), adapter_name="style")
    call = compiled(model, apart=True)
    reference = assert_follows(call, model, at("flux"), steps=range(4))
    with torch._dynamo.config.patch(error_on_recompile=True):
        with changes(model):
            model.load_lora_adapter(state_dict(2, rank=4), adapter_name="style", hotswap=True)
        # Step 4 is reused: the new adapter's probe and epilogue around the residuals that the old one left. Step 5 runs
        # deep, with the new adapter only, and what is reused after it mixes both until two steps have run deep.
        assert_follows(call, model, at("flux"), reference, steps=range(4, STEPS))
        assert_follows(call, model, at("flux"))


@pytest.mark.exhaustive
def test_a_pipelines_own_functions_reach_a_transformer_that_is_compiled_in_place() -> None:
    from tests.use import test_pipelines

    pipeline, arguments = test_pipelines.compiled(test_pipelines.flux, apart=True, threshold=0.0)

    def run() -> Tensor:
        return test_pipelines.run(pipeline, arguments, steps=2, true_cfg_scale=1.0)

    without = run()
    other, _ = test_pipelines.flux()
    adapter = state_dict(seed=1, rank=2, model=other.transformer, layers=["to_q", "to_v"])
    pipeline.load_lora_weights(adapter, adapter_name="a")
    whole = run()
    pipeline.set_adapters(["a"], [0.5])
    half = run()
    pipeline.disable_lora()
    assert torch.equal(run(), without)
    assert not torch.equal(whole, without)
    assert not torch.equal(half, whole)
    pipeline.unload_lora_weights()
    assert torch.equal(run(), without)
