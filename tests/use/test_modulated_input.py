"""A gate that looks at the modulated input sees what a model's first attention is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from dicache_compile import DiCacheConfig, dicache_backend
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import Reuse
from dicache_compile.gates import PolynomialChange
from zoo.entry import STEPS

# By entry: the linear of its first block that takes the image's modulated tokens first.
FIRST_LINEAR = {
    "flux": "transformer_blocks.0.attn.to_q",
    "wan": "blocks.0.attn1.to_q",
    "hunyuan_video": "transformer_blocks.0.attn.to_q",
    "qwenimage": "transformer_blocks.0.attn.to_q",
    "sd3": "transformer_blocks.0.attn.to_q",
    "ltx": "transformer_blocks.0.attn1.to_q",
    "flux2": "transformer_blocks.0.attn.to_q",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "wan" else [pytest.mark.exhaustive]) for name in FIRST_LINEAR]
)
def test_the_gate_sees_what_the_first_attention_is_given(name: str) -> None:
    entry = zoo.entries()[name]
    model = entry.build()
    given: list[Tensor] = []

    def keep(module: Any, arguments: tuple[Tensor, ...]) -> None:
        given.append(arguments[0].clone())

    handle = model.get_submodule(FIRST_LINEAR[name]).register_forward_pre_hook(keep)
    with torch.no_grad():
        model(**entry.at_step(0, STEPS))
    handle.remove()
    gate = PolynomialChange((1.0, 0.0), 0.1)
    config = DiCacheConfig(**{**entry.config, "gate": gate, "estimator": Reuse(), "probe_depth": 0}, lowering="eager")
    with torch.no_grad(), torch._dynamo.config.patch(**entry.dynamo):
        torch.compile(model, backend=dicache_backend, options=config.options())(**entry.at_step(0, STEPS))
    (stream,) = sessions_of(model)[-1].streams.values()
    assert torch.equal(stream.tensors["m_prev.0"], given[0])
