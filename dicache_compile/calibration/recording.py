"""What calibrations need of uncached generations, in bounded memory, and as a pair of files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VERSION = 1


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
        from safetensors.torch import save_file

        save_file({name: one.contiguous() for name, one in self.tensors.items()}, f"{os.fspath(path)}.safetensors")
        text = json.dumps({"version": VERSION, **self.about}, indent=1)
        Path(f"{os.fspath(path)}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: torch.nn.Module | None = None) -> Recording:
        """What `save` wrote; no code runs that is in the files.

        Raises ValueError for files of another version, and where `model` is given and is not the one recorded.
        """
        from safetensors.torch import load_file

        about = json.loads(Path(f"{os.fspath(path)}.json").read_text(encoding="utf-8"))
        if about.pop("version", None) != VERSION:
            raise ValueError(f"{path}: expected a recording of version {VERSION}: record again")
        if model is not None and (found := fingerprint(model)) != about["model"]:
            raise ValueError(f"{path} was recorded of {about['model']}, and this is {found}: record this one")
        return cls(load_file(f"{os.fspath(path)}.safetensors"), about)


def fingerprint(model: torch.nn.Module) -> str:
    """Class and parameters of a model: "FluxTransformer2DModel of 123 parameters in 45 tensors"."""
    tensors = list(model.parameters())
    count = sum(tensor.numel() for tensor in tensors)
    return f"{type(model).__name__} of {count} parameters in {len(tensors)} tensors"
