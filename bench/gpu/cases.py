"""The models that are measured, with random weights, and the denoising runs that they are measured on."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from .device import Device
from .rows import Bar

STEPS = 30
WARMUP, FINAL = 7, 1  # with these the published FLUX settings run 8 of 30 steps deep
DEEP = tuple(step < WARMUP or step >= STEPS - FINAL for step in range(STEPS))

_FLUX = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
_TINY_FLUX = {
    **_FLUX,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
_SMALL_FLUX = {  # blocks, width and tokens of the smallest of the sweep in versus
    **_FLUX,
    "num_layers": 2,
    "num_single_layers": 6,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "axes_dims_rope": (16, 24, 24),
}
_WAN = {
    "num_layers": 30,
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "text_dim": 4096,
    "freq_dim": 256,
}
_TINY_WAN = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 64,
    "text_dim": 32,
    "freq_dim": 32,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model at one size."""

    name: str
    family: type[nn.Module]
    config: Mapping[str, Any]
    latents: tuple[int, ...]
    text: int  # tokens of the prompt
    ideal: Bar | None  # for the speed-up over the ideal one
    peers: Bar | None  # for a peer's seconds over ours

    @property
    def is_flux(self) -> bool:
        return self.family is diffusers.FluxTransformer2DModel


def case_named(name: str, tiny: bool) -> Case:
    flux, wan = diffusers.FluxTransformer2DModel, diffusers.WanTransformer3DModel
    full = {
        "flux1024": Case("flux1024", flux, _FLUX, (1, 4096, 64), 512, Bar(">=", 0.98), Bar(">", 1.0)),
        "flux512": Case("flux512", flux, _FLUX, (1, 1024, 64), 512, Bar(">=", 0.95), Bar(">=", 1.1)),
        "wan": Case("wan", wan, _WAN, (1, 16, 21, 60, 104), 512, None, None),
        "small": Case("small", flux, _SMALL_FLUX, (1, 64, 64), 16, None, Bar(">=", 1.3)),
    }[name]
    if not tiny:
        return full
    config, latents = {
        "flux1024": (_TINY_FLUX, (1, 64, 64)),
        "flux512": (_TINY_FLUX, (1, 16, 64)),
        "wan": (_TINY_WAN, (1, 16, 2, 8, 8)),
        "small": (_TINY_FLUX, (1, 16, 64)),
    }[name]
    return Case(name, full.family, config, latents, 16, full.ideal, full.peers)


def build(case: Case, device: Device, **changed: Any) -> nn.Module:
    """The case's model with PyTorch's own random weights, made on the device."""
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(device.dtype)
    try:
        with torch.device(device.kind):
            model = case.family(**{**case.config, **changed})
    finally:
        torch.set_default_dtype(usual)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if kept & set(name.split(".")):  # as loading a checkpoint in half precision leaves them
            parameter.data = parameter.data.float()
    return model.eval().requires_grad_(False)


def share(model: nn.Module) -> nn.Module:
    """Another module with the same weights, for one system.

    Its `forward` is a function of its own: Dynamo keeps what it compiled by the code object, and where one system's
    graph breaks in a loop it gives that code up for everybody.
    """
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared = copy.deepcopy(model, kept)
    usual = type(model)
    # The name stays: caches look models up by it.
    own = {"forward": _fresh(usual.forward), "__module__": usual.__module__}
    shared.__class__ = type(usual.__name__, (usual,), own)
    return shared


def _fresh(function: Any) -> Any:
    """A function that does the same with a code object of its own, and so do the functions that it wraps."""
    cells = tuple(
        types.CellType(_fresh(cell.cell_contents)) if isinstance(cell.cell_contents, types.FunctionType) else cell
        for cell in function.__closure__ or ()
    )
    code = function.__code__.replace()
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def truncate(model: nn.Module, case: Case, device: Device) -> nn.Module:
    """Prologue, first block and epilogue of a model, with its weights: all that a reused step must run."""
    changed = {"num_layers": 1, **({"num_single_layers": 0} if case.is_flux else {})}
    small = share(build(case, device, **changed))
    weights = model.state_dict()
    small.load_state_dict({name: weights[name] for name in small.state_dict()}, assign=True)
    return small.eval().requires_grad_(False)


class Run:
    """The inputs of a denoising run, the same for every system, all on the device beforehand."""

    def __init__(self, case: Case, device: Device, steps: int = STEPS) -> None:
        generator = torch.Generator(device.kind).manual_seed(1)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device.kind, dtype=device.dtype)

        sigmas = [1 - step / steps for step in range(steps)] + [0.0]
        self.changes = [after - before for before, after in itertools.pairwise(sigmas)]
        self.latents = noise(*case.latents)
        config = case.config
        with torch.device(device.kind):
            if case.is_flux:
                image = case.latents[1]
                side = int(image**0.5)
                rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
                places = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(image, 3)
                self.times = [torch.tensor([sigma], dtype=device.dtype) for sigma in sigmas[:-1]]
                self.constant = {
                    "encoder_hidden_states": noise(1, case.text, config["joint_attention_dim"]),
                    "pooled_projections": noise(1, config["pooled_projection_dim"]),
                    "guidance": torch.tensor([3.5]),
                    "img_ids": places.to(device.dtype),
                    "txt_ids": torch.zeros(case.text, 3, dtype=device.dtype),
                    "return_dict": False,
                }
            else:
                self.times = [torch.tensor([round(1000 * sigma)]) for sigma in sigmas[:-1]]
                self.constant = {
                    "encoder_hidden_states": noise(1, case.text, config["text_dim"]),
                    "return_dict": False,
                }

    def arguments(self, step: int, latents: Tensor) -> dict[str, Any]:
        return {"hidden_states": latents, "timestep": self.times[step], **self.constant}

    def advance(self, step: int, latents: Tensor, output: Tensor) -> Tensor:
        """Euler's step along the predicted flow."""
        return torch.add(latents, output, alpha=self.changes[step])
