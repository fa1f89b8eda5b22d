"""What people do to diffusers models before they compile them: their layers, layout, numbers and hooks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import explain, summary
from dicache_compile.errors import UncachedWarning
from tests.helpers.cells import cells
from tests.use.test_real_use import PATTERN, STEPS, Make, Reference, assert_follows, at, build, compiled, marks, shaken

pytestmark = pytest.mark.shares_traces

# The form of the model


@pytest.mark.exhaustive
def test_attention_processors_may_be_replaced_before_and_after_compiling() -> None:
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    class Halved(FluxAttnProcessor):
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(attn, 0.5 * hidden_states, *args, **kwargs)

    model = build("flux")
    model.set_attn_processor(Halved())
    call = compiled(model)
    assert_follows(call, model, at("flux"))
    model.set_attn_processor(FluxAttnProcessor())
    assert_follows(call, model, at("flux"))
    model.fuse_qkv_projections()
    assert_follows(call, model, at("flux"))
    model.unfuse_qkv_projections()
    assert_follows(call, model, at("flux"))
    assert len(summary(model).generations) == 4


def last_channels(name: str) -> Make:
    def arguments(step: int) -> dict[str, Any]:
        call = at(name)(step)
        return {**call, "hidden_states": call["hidden_states"].contiguous(memory_format=torch.channels_last)}

    return arguments


@pytest.mark.parametrize("name", ["dit_transformer2d", pytest.param("sd3", marks=pytest.mark.exhaustive)])
def test_channels_last_changes_neither_values_nor_strides(name: str) -> None:
    model = build(name).to(memory_format=torch.channels_last)
    call = compiled(model)
    assert_follows(call, model, last_channels(name))
    assert_follows(call, model, at(name))


@pytest.mark.exhaustive
def test_channels_last_and_new_weights_keep_what_they_mean_under_inductor() -> None:
    name = "dit_transformer2d"
    model = build(name).to(memory_format=torch.channels_last)
    call = compiled(model, lowering="inductor")
    for _ in range(2):
        reference = Reference(model)
        for step in range(STEPS):
            arguments = last_channels(name)(step)
            expected = reference(PATTERN[step] == "D", **arguments)
            with torch.no_grad():
                ours = call(**arguments)[0]
            assert ours.stride() == expected.stride()
            torch.testing.assert_close(ours, expected)
        assert marks(model) == PATTERN
        model.load_state_dict(shaken(model))


# Numbers


@pytest.mark.parametrize("name", ["flux", pytest.param("sd3", marks=pytest.mark.exhaustive)])
def test_autocast_gives_what_the_model_gives_in_it(name: str) -> None:
    model = build(name)
    call = compiled(model)
    for scope in (torch.autocast("cpu", dtype=torch.bfloat16), nullcontext()):
        with scope:
            assert_follows(call, model, at(name))


@cells("dtype, autocast", [torch.bfloat16, torch.float16], [False, True])
def test_threshold_zero_is_bit_identical_in_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    model = build("flux").to(torch.float32 if autocast else dtype)
    call = compiled(model, threshold=0.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=autocast):
        for step in range(STEPS):
            arguments = at("flux", None if autocast else dtype)(step)
            ours, plain = call(**arguments)[0], model(**arguments)[0]
            assert ours.dtype is plain.dtype is dtype
            assert torch.equal(ours, plain)
    assert marks(model) == "D" * STEPS


@pytest.mark.parametrize(("name", "dtype"), [("flux", torch.bfloat16), ("sd3", torch.float16)], ids=str)
def test_weights_of_half_precision(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    call = compiled(model)
    assert_follows(call, model, at(name, dtype))


def test_weights_stored_in_float8_and_cast_in_the_forward_pass() -> None:
    class Stored(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(inputs, self.weight.to(inputs.dtype), self.bias)

    model = build("flux").to(torch.bfloat16)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        for layer in (block.attn.to_q, block.attn.to_v):
            layer.__class__ = Stored
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    call = compiled(model)
    assert_follows(call, model, at("flux", torch.bfloat16))


def test_int8_weights_of_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao makes the quantised weights")
    model = build("flux")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert sum(type(weight) is not nn.Parameter for weight in model.parameters()) > 10
    call = compiled(model)
    assert_follows(call, model, at("flux"))


# Training's and offloading's machinery


def test_gradient_checkpointing_does_not_matter_without_gradients() -> None:
    model = build("flux")
    model.enable_gradient_checkpointing()
    call = compiled(model)
    for training in (False, True):
        model.train(training)
        assert_follows(call, model, at("flux"))


def test_gradient_checkpointing_with_gradients_enabled_is_refused_aloud() -> None:
    """Diffusers wraps each block then, even where nothing requires gradients."""
    model = build("flux")
    model.enable_gradient_checkpointing()
    call = compiled(model, strict=False)
    with pytest.warns(UncachedWarning, match="checkpoint"):
        for step in range(STEPS):
            arguments = at("flux")(step)
            assert torch.equal(call(**arguments)[0], model(**arguments)[0])
    assert not summary(model).generations


def test_group_offloading_breaks_the_graph_and_is_refused_with_that_reason() -> None:
    from diffusers.hooks import apply_group_offloading

    plain, model = build("flux"), build("flux")
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    call = compiled(model, fullgraph=False, strict=False)
    with torch.no_grad(), pytest.warns(UncachedWarning, match=r"Dynamo broke .* group_offloading\.py"):
        for step in range(STEPS):
            arguments = at("flux")(step)
            assert torch.equal(call(**arguments)[0], plain(**arguments)[0])
    assert not summary(model).generations


@pytest.mark.exhaustive
def test_layerwise_casting_breaks_the_graph_at_every_layer_and_explain_says_so() -> None:
    """PyTorch cannot trace its hooks: they make parameters in the middle of the forward pass.

    What is left are fragments of one layer, which run uncached, and say so on the second call.
    """
    name, dtype = "dit_transformer2d", torch.bfloat16

    def stored_in_float8() -> Any:
        model = build(name).to(dtype)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
        return model

    plain, model = stored_in_float8(), stored_in_float8()
    call = compiled(model, fullgraph=False, strict=False)
    with torch.no_grad(), pytest.warns(UncachedWarning, match="Dynamo broke the model's graph"):
        for step in range(STEPS):
            arguments = at(name, dtype)(step)
            assert torch.equal(call(**arguments)[0], plain(**arguments)[0])
    assert not summary(model).generations
    told = explain(model, **at(name, dtype)(0))
    assert not told.cached
    assert "Dynamo broke the model's graph" in str(told.reason)
