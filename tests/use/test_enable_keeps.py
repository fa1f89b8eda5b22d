"""What a pipeline with a cache is still able to: to be saved and loaded, to take LoRAs, to be offloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from dicache_compile import dicache_backend, enable_cache, generation
from tests.use.test_pipeline_loops import uncached
from tests.use.test_pipeline_zoo import ENTRIES, recorded
from tests.use.test_real_use_lora import state_dict
from zoo.pipelines.entry import STEPS, generate
from zoo.pipelines.flux import TEXT
from zoo.pipelines.parts import denoiser, no_text

accelerate = pytest.importorskip("accelerate", reason="the hooks of offloading are accelerate's")
BOTH = {"cond": tuple(range(STEPS)), "uncond": tuple(range(STEPS))}


def assert_exact_and_cached(pipe: Any, arguments: dict[str, Any]) -> None:
    with generation(threshold=0.0):
        exact = generate(pipe, arguments)
    assert recorded(pipe.transformer) == BOTH
    first, second = (generate(pipe, arguments) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, exact)
    assert torch.equal(exact, uncached(pipe, arguments))


def test_a_pipeline_is_saved_and_loaded_without_its_cache(tmp_path: Path) -> None:
    pipe, arguments = ENTRIES["flux"].make()
    enabled = enable_cache(pipe, threshold=10.0, compile=False)
    assert isinstance(pipe.transformer, diffusers.FluxTransformer2DModel)
    assert_exact_and_cached(pipe, arguments)
    pipe.save_pretrained(tmp_path)
    other = diffusers.FluxPipeline.from_pretrained(tmp_path, **no_text(*TEXT))
    other.set_progress_bar_config(disable=True)
    assert other.transformer._compiled_call_impl is None
    weights = other.transformer.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in pipe.transformer.state_dict().items())
    # Weights of a file lie at other addresses, by which the CPU's kernels round otherwise.
    torch.testing.assert_close(generate(other, arguments), uncached(pipe, arguments), rtol=1e-4, atol=1e-4)
    enabled.disable()
    assert pipe.transformer._compiled_call_impl is None


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_pipeline_takes_loras_while_it_is_cached_and_swaps_them_hot() -> None:
    model = denoiser("flux", in_channels=16)
    first, second = (state_dict(seed, 2, denoiser("flux", in_channels=16), ["to_q", "proj_out"]) for seed in (1, 2))
    pipe, arguments = ENTRIES["flux"].make()
    assert type(pipe.transformer) is type(model)
    enable_cache(pipe, threshold=10.0, compile=False)
    seen = [generate(pipe, arguments)]
    pipe.load_lora_weights(first, adapter_name="style")
    assert_exact_and_cached(pipe, arguments)
    seen.append(generate(pipe, arguments))
    pipe.load_lora_weights(second, adapter_name="style", hotswap=True)
    assert_exact_and_cached(pipe, arguments)
    seen.append(generate(pipe, arguments))
    pipe.set_adapters("style", 0.5)
    assert_exact_and_cached(pipe, arguments)
    seen.append(generate(pipe, arguments))
    assert not any(torch.equal(a, b) for number, a in enumerate(seen) for b in seen[:number])
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, arguments), seen[0])


def test_a_pipeline_is_offloaded_while_it_is_cached() -> None:
    pipe, arguments = ENTRIES["flux"].make()
    enable_cache(pipe, threshold=10.0, compile=False)
    before = generate(pipe, arguments)
    accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
    assert torch.equal(generate(pipe, arguments), before)
    assert_exact_and_cached(pipe, arguments)


@pytest.mark.parametrize("backend", ["dicache", dicache_backend])
def test_blocks_alone_are_refused_before_any_is_compiled(backend: Any) -> None:
    model = denoiser("flux")
    with pytest.raises(ValueError, match=r"compiles each block of the model alone.*enable_cache\(model\)"):
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
    assert not any(part._compiled_call_impl for part in model.modules())
    model.compile_repeated_blocks(backend="eager")
    assert sum(part._compiled_call_impl is not None for part in model.modules()) == 4
