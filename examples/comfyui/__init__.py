"""A node for ComfyUI: caches the diffusion model that a workflow samples with.

Copy this folder to `ComfyUI/custom_nodes/dicache`, and install dicache-compile into ComfyUI's environment. Put the node
"DiCache" between the model and the sampler, after LoRAs and other patches. docs/serving.md says more.
"""

from __future__ import annotations

import logging
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper

from dicache_compile import DiCacheConfig, generation, stream, summary

KEY = "dicache_compile"
# Compiled once. What the node sets holds for one run at a time, so that to change it compiles nothing.
CONFIG = DiCacheConfig()
# Samplers that call the model twice a step, but for the last one.
TWICE = ("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "seeds_2")


class DiCache:
    """The node."""

    CATEGORY, FUNCTION, RETURN_TYPES = "model_patches", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        exact = {"default": -1.0, "min": -1.0, "max": 1.0, "step": 0.01, "tooltip": "-1: as quality says; 0: exact"}
        last = {"default": 1, "min": 0, "max": 100, "tooltip": "how many last steps always run in full"}
        needed = {"model": ("MODEL",), "quality": (["balanced", "high", "fast"],), "final_steps": ("INT", last)}
        return {"required": needed, "optional": {"threshold": ("FLOAT", exact)}}

    def patch(self, model: Any, quality: str, final_steps: int, threshold: float = -1.0) -> tuple[Any]:
        patched = model.clone(disable_dynamic=True)  # as for ComfyUI's own node: compiled code needs weights in place
        options = {**CONFIG.options(), "guard_filter_fn": kept_guards}
        set_torch_compile_wrapper(patched, backend="dicache", options=options)
        own = {"threshold": threshold} if threshold >= 0 else {}
        names: dict[Any, str] = {}  # of this run's streams, by what they are of

        def run(executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **kw: Any) -> Any:
            names.clear()
            steps = calls(sampler, len(sigmas) - 1)
            with generation(num_steps=steps, quality=quality, final_steps=final_steps, **own):
                samples = executor(noise, latent_image, sampler, sigmas, *args, **kw)
            logging.info("DiCache\n%s", summary(patched.get_model_object("diffusion_model")))
            return samples

        def call(executor: Any, x: Any, t: Any, concat: Any, context: Any, control: Any, to: Any, **kw: Any) -> Any:
            # Conditions that run as one batch are one stream, and each part of a long video. Names are used again by
            # the next run, whose uuids are new: so it takes over the memory.
            window = getattr(to.get("context_window"), "index_list", ())
            key = (*to["uuids"], *to["cond_or_uncond"], *window)
            with stream(names.setdefault(key, f"stream {len(names)}")):
                return executor(x, t, concat, context, control, to, **kw)

        for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, run), (WrappersMP.APPLY_MODEL, call)):
            patched.remove_wrappers_with_key(kind, KEY)
            patched.add_wrapper_with_key(kind, KEY, wrapper)
        return (patched,)


def calls(sampler: Any, steps: int) -> int:
    """How often a sampler calls the model."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    return max(1, 2 * steps - 1 if name.removesuffix("_cfg_pp") in TWICE else steps)


def kept_guards(entries: Any) -> list[bool]:
    """What compiled code is held to: of `transformer_options`, new in each run, its keys and the patches in it.

    ComfyUI's own node drops the patches as well. Then one that is added later is not in the picture.
    """
    kept = ("transformer_options", "transformer_options']")
    return [
        "transformer_options" not in one.name or one.name.endswith(kept) or "patches" in one.name for one in entries
    ]


NODE_CLASS_MAPPINGS = {"DiCache": DiCache}
NODE_DISPLAY_NAME_MAPPINGS = {"DiCache": "DiCache"}
