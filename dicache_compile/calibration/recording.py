"""What calibrations need of uncached generations, in bounded memory, and as a pair of files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_whole
from .sealed import digest_of, read, refusing, write

VERSION = 2
_TENSORS = "tensors_sha256"  # of the other file


@dataclass(frozen=True)
class Recording:
    """Some uncached generations of a model: what was carried, of as many tokens as there was room for.

    `tensors`, all float32, of R rows (of batch and tokens) and C channels:

    - "x", "h", "y": [samples, calls, steps, R, C], where values enter the site, leave the probe and leave the site. Of
      several sites, such as the attentions of all blocks, their rows are one after another.
    - "result": [samples, calls, steps, N], numbers of the model's result.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]  # the model's class and parameters, its sampler's timesteps, what was recorded

    @property
    def num_steps(self) -> int:
        return self.tensors["y"].shape[2]

    @property
    def residuals(self) -> Tensor:
        """Y - x, or y of what is no residual: [samples, calls, steps, R, C]."""
        return self.tensors["y"] if self.about["form"] == "value" else self.tensors["y"] - self.tensors["x"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `path`.safetensors and `path`.json. Raises ModuleNotFoundError where safetensors is not installed."""
        from safetensors.torch import save

        content = save({name: one.contiguous() for name, one in self.tensors.items()})
        write_whole(Path(f"{os.fspath(path)}.safetensors"), content)
        about = {"version": VERSION, **self.about, _TENSORS: digest_of(content)}
        write(Path(f"{os.fspath(path)}.json"), about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: torch.nn.Module | None = None) -> Recording:
        """What `save` wrote; no code runs that is in the files.

        Raises ValueError for files of another version, that are not whole or were changed, or do not belong together,
        and where `model` is given and is not the one recorded.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        expected = f"expected a recording of version {VERSION}: record again"
        place = Path(f"{os.fspath(path)}.json")
        about = read(place, VERSION, expected)
        content = Path(f"{os.fspath(path)}.safetensors").read_bytes()
        with refusing(place, expected):
            if about.pop(_TENSORS) != digest_of(content):
                raise ValueError(f"{path}.safetensors is not the one that was written with {place}: {expected}")
            if model is not None and (found := fingerprint(model)) != about["model"]:
                raise ValueError(f"{path} was recorded of {about['model']}, and this is {found}: record this one")
        try:
            return cls(load(content), about)
        except SafetensorError as error:
            raise ValueError(f"{path}.safetensors cannot be read ({error}): {expected}") from error


def fingerprint(model: torch.nn.Module) -> str:
    """Class and parameters of a model: "FluxTransformer2DModel of 123 parameters in 45 tensors"."""
    tensors = list(model.parameters())
    count = sum(tensor.numel() for tensor in tensors)
    return f"{type(model).__name__} of {count} parameters in {len(tensors)} tensors"
