"""Quantised models: cached as any other, bit for bit where a step runs deep, and still so after they were moved.

The truth is the quantised model itself, uncompiled, with DiCache's rule by forward hooks.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import dicache_backend
from tests.use.test_real_use import assert_follows, at, build, compiled, marks

pytestmark = pytest.mark.shares_traces
Replace = Callable[[nn.Linear], nn.Module]


def blocks_of(model: Any) -> list[nn.Module]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def with_linears(model: Any, replace: Replace) -> Any:
    """Every linear layer of the blocks in another form, in place."""
    for block in blocks_of(model):
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, replace(child))
    return model


# torchao: weights that are tensors made of others


def torchao_config(name: str) -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao makes the quantised weights")
    if name == "nvfp4":
        formats = pytest.importorskip("torchao.prototype.mx_formats")
        return formats.NVFP4WeightOnlyConfig()
    return getattr(quantization, name)()


def quantised(name: str, dtype: torch.dtype) -> Any:
    config, model = torchao_config(name), build("flux").to(dtype)
    quantize = sys.modules["torchao.quantization"].quantize_
    for block in blocks_of(model):
        quantize(block, config)
    assert sum(type(weight) is not nn.Parameter for weight in model.parameters()) > 10
    return model


TORCHAO = {
    "int8 weights": "Int8WeightOnlyConfig",
    "int8 activations": "Int8DynamicActivationInt8WeightConfig",
    "float8 weights": "Float8WeightOnlyConfig",
    "nvfp4 weights": "nvfp4",
}


@pytest.mark.parametrize("name", TORCHAO.values(), ids=TORCHAO)
def test_what_torchao_quantises_is_cached(name: str) -> None:
    model = quantised(name, torch.bfloat16)
    call = compiled(model, apart=True)
    assert_follows(call, model, at("flux", torch.bfloat16))


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_a_quantised_model_may_change_its_dtype_and_be_moved_after_compiling(name: str) -> None:
    model = quantised(name, torch.float32)
    call = compiled(model, backend=dicache_backend)
    assert_follows(call, model, at("flux"))
    gc.collect()  # what Dynamo leaves behind has weak references to the weights, which PyTorch then cannot exchange
    model.to(torch.bfloat16)
    assert_follows(call, model, at("flux", torch.bfloat16))
    gc.collect()
    model.to("cpu")
    assert_follows(call, model, at("flux", torch.bfloat16))


# Float8 activations, for which torchao has kernels on GPUs alone


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_activations_are_cached(dtype: torch.dtype) -> None:
    fake = pytest.importorskip("bench.fake_quantised")
    rounding = fake.floats(dtype)
    model = with_linears(build("flux"), partial(fake.FakeQuantised, weights=rounding, activations=rounding))
    call = compiled(model, apart=True)
    assert_follows(call, model, at("flux"))


# As bitsandbytes has it: packed weights whose form is said beside them, and a matrix product of its own

_BLOCK = 64  # weights that share a scale


@torch.library.custom_op("tests_low_precision::matmul_4bit", mutates_args=())
def _matmul_4bit(x: Tensor, packed: Tensor, scales: Tensor, outputs: int) -> Tensor:
    return x @ _unpacked(packed, scales).reshape(outputs, -1).t().to(x.dtype)


@_matmul_4bit.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    codes = torch.stack((packed // 16, packed % 16), dim=-1).reshape(-1, _BLOCK)
    return (codes.float() - 8) / 7 * scales[:, None]


class Packed(nn.Parameter):
    """A parameter with an attribute that tells its form, and no arithmetic of its own."""

    scales: Tensor

    def __new__(cls, data: Tensor, scales: Tensor) -> Packed:
        made: Packed = torch.Tensor._make_subclass(cls, data, False)
        made.scales = scales
        return made


class FourBit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, outputs: int) -> Tensor:
        return _matmul_4bit(x, weight, scales, outputs)


class LinearFourBit(nn.Linear):
    """Packs its weight as bitsandbytes' `Linear4bit` does: two weights a byte, a scale for each 64."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        rows = linear.weight.detach().reshape(-1, _BLOCK)
        scales = rows.abs().amax(1)
        codes = (rows / scales[:, None] * 7).round().add(8).to(torch.uint8).reshape(-1, 2)
        self.weight = Packed((codes[:, :1] * 16 + codes[:, 1:]).contiguous(), scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product = FourBit.apply(x, self.weight, self.weight.scales, self.out_features)
        return product if self.bias is None else product + self.bias


def test_packed_weights_with_a_product_of_their_own_are_cached() -> None:
    model = with_linears(build("flux"), LinearFourBit)
    call = compiled(model, apart=True)
    assert_follows(call, model, at("flux"))


# GGUF, by diffusers' own layers


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Diffusers' module of GGUF layers, on a stand-in where the package gguf is not installed."""
    name = "diffusers.quantizers.gguf.utils"
    if importlib.util.find_spec("gguf") is None:
        monkeypatch.setitem(sys.modules, "gguf", importlib.import_module("tests.fakes.fake_gguf"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def q8(linear: nn.Linear, gguf: Any) -> nn.Module:
    """Q8_0: for each 32 weights a float16 scale and 32 bytes."""
    blocks = linear.weight.detach().float().reshape(-1, 32)
    scales = (blocks.abs().amax(1, keepdim=True) / 127).half()
    codes = (blocks / scales.float()).round().clamp(-127, 127).to(torch.int8)
    data = torch.cat((scales.view(torch.uint8), codes.view(torch.uint8)), dim=1).reshape(linear.out_features, -1)
    made = gguf.GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, torch.float32)
    made.weight = gguf.GGUFParameter(data, quant_type=gguf.gguf.GGMLQuantizationType.Q8_0)
    made.bias = linear.bias
    return made  # type: ignore[no-any-return]


def test_weights_of_gguf_are_cached(gguf: Any) -> None:
    model = with_linears(build("flux"), lambda linear: q8(linear, gguf))
    call = compiled(model, apart=True)
    assert_follows(call, model, at("flux"))


@torch.no_grad()
def test_with_threshold_zero_a_quantised_model_is_bit_identical() -> None:
    model = quantised("Int8DynamicActivationInt8WeightConfig", torch.bfloat16)
    call = compiled(model, apart=True, threshold=0.0)
    for step in range(6):
        arguments = at("flux", torch.bfloat16)(step)
        assert torch.equal(call(**arguments)[0], model(**arguments)[0])
    assert marks(model) == "DDDDDD"
