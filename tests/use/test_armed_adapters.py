"""What diffusers and peft change of a model in mid-generation is seen at once, though steps go straight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dicache_compile import enable_cache, generation
from dicache_compile.armed import Armed
from tests.use.test_real_use import at, build
from tests.use.test_real_use_lora import lora, state_dict

pytest.importorskip("peft", reason="diffusers loads LoRAs with peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
    pytest.mark.filterwarnings("ignore:the model was compiled again"),
]
STEPS, CHANGED = 5, 3


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "scale_layer")]


class Processor:
    """Attention that gives twice as much."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        found = self.inner(attn, hidden_states, *args, **kwargs)
        return tuple(2 * one for one in found) if isinstance(found, tuple) else 2 * found


CHANGES: dict[str, Callable[[Any], Any]] = {
    "set_adapter": lambda model: model.set_adapter("b"),
    "set_adapters": lambda model: model.set_adapters(["a", "b"], [0.5, 0.7]),
    "strengths": lambda model: model.set_adapters("a", [0.3]),
    "disable_adapters": lambda model: model.disable_adapters(),
    "disable_lora": lambda model: model.disable_lora(),
    "add_adapter": lambda model: model.add_adapter(lora(3), "c"),
    "delete_adapters": lambda model: model.delete_adapters("a"),
    "fuse_lora": lambda model: model.fuse_lora(lora_scale=0.5),
    "unload_lora": lambda model: model.unload_lora(),
    "load_lora_adapter": lambda model: model.load_lora_adapter(
        state_dict(4, 2), adapter_name="d", prefix="transformer", use_safetensors=False
    ),
    "scale_layer": lambda model: [layer.scale_layer(0.5) for layer in layers(model)],
    "set_scale": lambda model: [layer.set_scale("a", 0.25) for layer in layers(model)],
    "merge": lambda model: [layer.merge() for layer in layers(model)],
    "fuse_qkv_projections": lambda model: (model.fuse_qkv_projections(), model.set_adapter("b")),
    "set_attn_processor": lambda model: model.set_attn_processor(
        {name: Processor(each) for name, each in model.attn_processors.items()}
    ),
    "a processor of one layer": lambda model: model.transformer_blocks[1].attn.set_processor(
        Processor(model.transformer_blocks[1].attn.processor)
    ),
}
OFTEN = ("set_adapters", "set_attn_processor")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.exhaustive) for name in CHANGES]
)
@torch.no_grad()
def test_a_change_in_mid_generation_is_seen_at_once(name: str) -> None:
    model = build("flux")
    model.add_adapter(lora(), "b")
    model.add_adapter(lora(), "a")
    enable_cache(model, threshold=0.0, streams=1, compile=False)
    armed = model._compiled_call_impl
    assert isinstance(armed, Armed)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = at("flux")(step)
            if step == CHANGED:
                before = model._call_impl(**given)[0]
                CHANGES[name](model)
                assert not torch.equal(model._call_impl(**given)[0], before)
            assert torch.equal(model(**given)[0], model._call_impl(**given)[0]), f"step {step}"
    assert armed.calls == CHANGED - 1
