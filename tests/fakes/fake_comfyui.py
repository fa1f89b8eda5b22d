"""What the node of `examples/comfyui` meets of ComfyUI, written for its test.

As read in ComfyUI's source in November 2026:

- `comfy/patcher_extension.py`: `WrappersMP` has the names of places. What stands at one is called with an executor,
  which calls the next wrapper and at last the function itself. `executor.class_obj` is the object whose method it is.
- `comfy/model_patcher.py`: a MODEL of a workflow is a `ModelPatcher`. `clone()` has the same model and lists of
  wrappers of its own, in `wrappers[kind][key]`. With `disable_dynamic` weights stay on the device, which compiled code
  needs. `get_model_object("diffusion_model")` is the network.
- `comfy_api/torch_helpers/torch_compile.py`: `set_torch_compile_wrapper` compiles the network with `torch.compile` and
  adds an APPLY_MODEL wrapper that puts it in the network's place while the model is called.
- `comfy/sampler_helpers.py`: each condition of a run has a new `uuid.uuid4()`. The patcher's wrappers come with
  `transformer_options["wrappers"]`.
- `comfy/samplers.py`: `CFGGuider.sample` calls `outer_sample(noise, latent_image, sampler, sigmas, denoise_mask,
  callback, disable_pbar, seed)` through the OUTER_SAMPLE wrappers. `transformer_options` has "sample_sigmas" of the
  run, and of each call "sigmas", "uuids" and "cond_or_uncond" (0 positive, 1 negative), one for each condition of its
  batch. Conditions of one shape run as one batch where memory allows. A condition may end before the run does. A
  condition made to fill another's area has that one's uuid.
- `comfy/context_windows.py`: a long video is denoised in windows. On each step the same conditions are called for each,
  with `transformer_options["context_window"]`, whose `index_list` says which frames.
- `comfy/model_base.py`: `apply_model(x, t, c_concat, c_crossattn, control, transformer_options)` goes through the
  APPLY_MODEL wrappers and calls `diffusion_model(x, t, context=, control=, transformer_options=)` with a copy of the
  dictionary.
- `comfy/ldm/*/model.py`: networks look for "patches_replace" among the options, and some write into them.
- An interrupted run raises out of the sampler.
"""

from __future__ import annotations

import copy
import itertools
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

COMPILE_KEY = "torch.compile"
Wrappers = dict[str, dict[Any, list[Callable[..., Any]]]]
Options = dict[str, Any]  # "transformer_options"
Denoiser = Callable[[Tensor, Tensor], Tensor]  # latents [B, C, H, W] and a sigma [1]: what they are denoised to


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    SAMPLER_SAMPLE = "sampler_sample"
    APPLY_MODEL = "apply_model"


@dataclass
class WrapperExecutor:
    """Calls the first of some wrappers with one of these that calls the rest."""

    original: Callable[..., Any]
    class_obj: Any
    wrappers: list[Callable[..., Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        rest = WrapperExecutor(self.original, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)


def through(kind: str, method: Callable[..., Any], options: Options) -> WrapperExecutor:
    """A method, behind the wrappers of a place that stand in `transformer_options`."""
    at = options.get("wrappers", {}).get(kind, {})
    return WrapperExecutor(method, getattr(method, "__self__", None), [one for key in at.values() for one in key])


class BaseModel(nn.Module):
    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def apply_model(self, x: Tensor, t: Tensor, concat: Any, context: Tensor, control: Any, to: Options) -> Tensor:
        run = through(WrappersMP.APPLY_MODEL, self._apply_model, to)
        result: Tensor = run(x, t, concat, context, control, to)
        return result

    def _apply_model(self, x: Tensor, t: Tensor, _: Any, context: Tensor, control: Any, to: Options) -> Tensor:
        options = {**to, "prefetch_dynamic_vbars": False}
        velocity = self.diffusion_model(x, t, context=context, control=control, transformer_options=options)
        denoised: Tensor = x - t.reshape(-1, 1, 1, 1) * velocity
        return denoised


@dataclass
class ModelPatcher:
    model: BaseModel
    model_options: dict[str, Any] = field(default_factory=lambda: {"transformer_options": {}})
    wrappers: Wrappers = field(default_factory=dict)

    def clone(self, disable_dynamic: bool = False) -> ModelPatcher:
        wrappers = {kind: {key: list(own) for key, own in keys.items()} for kind, keys in self.wrappers.items()}
        return ModelPatcher(self.model, copy.deepcopy(self.model_options), wrappers)

    def get_model_object(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def add_wrapper_with_key(self, kind: str, key: Any, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: Any) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def set_model_patch_replace(self, patch: Callable[..., Any], name: str, block: str, number: int) -> None:
        replaced = self.model_options["transformer_options"].setdefault("patches_replace", {}).setdefault(name, {})
        replaced[block, number] = patch


def set_torch_compile_wrapper(
    model: ModelPatcher,
    backend: Any,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
    fullgraph: bool = False,
    dynamic: bool | None = None,
) -> None:
    network: Any = model.get_model_object("diffusion_model")
    compiled: Any = torch.compile(
        network, backend=backend, options=options, mode=mode, fullgraph=fullgraph, dynamic=dynamic
    )

    def in_its_place(executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        executor.class_obj.diffusion_model = compiled
        try:
            return executor(*args, **kwargs)
        finally:
            executor.class_obj.diffusion_model = network

    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, in_its_place)


@dataclass
class Condition:
    """One line of a workflow's conditioning."""

    context: Tensor  # [B, P, C]
    end: float = 0.0  # it holds while sigma is at least this
    uuid: Any = None


def sample_euler(denoised: Denoiser, x: Tensor, sigmas: Tensor, callback: Callable[[int], None]) -> Tensor:
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        x = x + (after - sigma) * (x - denoised(x, sigma[None])) / sigma
        callback(step)
    return x


def sample_heun(denoised: Denoiser, x: Tensor, sigmas: Tensor, callback: Callable[[int], None]) -> Tensor:
    """Two calls a step, but for the last one."""
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - denoised(x, sigma[None])) / sigma
        if after > 0:
            there = x + (after - sigma) * slope
            slope = (slope + (there - denoised(there, after[None])) / after) / 2
        x = x + (after - sigma) * slope
        callback(step)
    return x


@dataclass
class KSAMPLER:
    sampler_function: Callable[..., Tensor]


@dataclass
class CFGGuider:
    model_patcher: ModelPatcher
    positive: list[Condition]
    negative: list[Condition]
    cfg: float = 2.0
    roomy: bool = True  # whether memory allows for all conditions in one batch
    windows: tuple[tuple[int, ...], ...] = ()  # columns of the latents that are denoised by themselves

    def sample(self, noise: Tensor, sampler: KSAMPLER, sigmas: Tensor, callback: Any = lambda step: None) -> Tensor:
        """Latents [B, C, H, W] from noise of that shape; `sigmas` falls to 0."""
        told = copy.copy(self.model_patcher.model_options["transformer_options"])
        self.options = {**told, "wrappers": self.model_patcher.clone().wrappers}
        self.conditions = [
            (kind, Condition(one.context, one.end, uuid.uuid4()))
            for kind, conditions in enumerate((self.positive, self.negative))
            for one in conditions
        ]
        run = through(WrappersMP.OUTER_SAMPLE, self.outer_sample, self.options)
        latents = torch.zeros_like(noise)
        result: Tensor = run(noise, latents, sampler, sigmas, None, callback, True, 0, latent_shapes=None)
        return result

    def outer_sample(
        self,
        noise: Tensor,
        latents: Tensor,
        sampler: KSAMPLER,
        sigmas: Tensor,
        _: Any,
        callback: Any,
        *__: Any,
        **___: Any,
    ) -> Tensor:
        self.options["sample_sigmas"] = sigmas
        with torch.inference_mode():
            return sampler.sampler_function(self.predict_noise, noise * sigmas[0], sigmas, callback)

    def predict_noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.windows:
            return self.calc_cond_batch(x, sigma)
        result = torch.empty_like(x)
        for window in self.windows:
            self.options["context_window"] = SimpleNamespace(index_list=list(window))
            result[..., window] = self.calc_cond_batch(x[..., window], sigma)
        return result

    def calc_cond_batch(self, x: Tensor, sigma: Tensor) -> Tensor:
        running = [(kind, one) for kind, one in self.conditions if float(sigma) >= one.end]
        batches = [running] if self.roomy else [[one] for one in running]
        given: dict[int, list[Tensor]] = {0: [], 1: []}
        for batch in batches:
            options = {
                **self.options,
                "cond_or_uncond": [kind for kind, _ in batch],
                "uuids": [one.uuid for _, one in batch],
                "sigmas": sigma,
            }
            many, context = torch.cat([x] * len(batch)), torch.cat([one.context for _, one in batch])
            denoised = self.model_patcher.model.apply_model(
                many, sigma.expand(len(many)).contiguous(), None, context, None, options
            )
            for (kind, _), part in zip(batch, denoised.chunk(len(batch)), strict=True):
                given[kind].append(part)
        positive, negative = (torch.stack(parts).mean(0) if parts else None for parts in given.values())
        assert positive is not None
        return positive if negative is None else negative + self.cfg * (positive - negative)


def modules() -> dict[str, ModuleType]:
    """Those that a node imports."""
    given: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.patcher_extension": {"WrappersMP": WrappersMP},
        "comfy_api": {},
        "comfy_api.torch_helpers": {"set_torch_compile_wrapper": set_torch_compile_wrapper},
    }
    made = {name: ModuleType(name) for name in given}
    for name, attributes in given.items():
        vars(made[name]).update(attributes)
    return made
