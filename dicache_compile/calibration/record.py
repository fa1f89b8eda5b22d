"""Records uncached generations for calibrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..config import DiCacheConfig
from ..estimators import Reuse
from ..gates import PolynomialChange
from ..schedules import Schedule
from .progress import progress_bar
from .recording import Recording, fingerprint
from .standing import Place, standing
from .taps import Inputs, Taps

_RESULTS = 4096  # numbers that are kept of each result


def record(
    model: nn.Module,
    run: Callable[[int], Any],
    samples: int = 2,
    *,
    looks_at: Literal["probe", "modulated"] = "probe",
    sites: Any = "trunk",
    most_bytes: int = 2**30,
    progress: bool = True,
) -> Recording:
    """Runs a user's function uncached with seeds from 0 on, and keeps what calibrations need of it.

    `run(seed)` generates with the model. `looks_at` and `sites` say what is kept, as in `rules.Gate` and the config:
    "modulated" is what TeaCache needs, `sites="attention"` what SmoothCache does. Where all tokens need more than
    `most_bytes`, an even choice of them is kept. The model is left as it was.

    Raises ValueError where the function does not call the model, its graph is not cut, or runs differ in their steps.
    """
    found: list[list[list[dict[str, Tensor]]]] = []
    times: list[float] = []
    forms: set[str] = set()
    config = _config(looks_at, sites)
    with standing(model, config) as stand, progress_bar("recording", progress) as bar, torch.no_grad():
        bar.phase("recording", samples)
        for seed in range(samples):
            steps: list[list[dict[str, Tensor]]] = []

            def keep(place: Place, pieces: Taps, inputs: Inputs, steps: list[list[dict[str, Tensor]]] = steps) -> Any:
                outputs, *carried = pieces.whole(*inputs)
                if place.step == len(steps):
                    steps.append([])
                count = len(pieces.carried)
                forms.update(value.form for value in pieces.carried)
                share = most_bytes // (3 * samples * max(len(steps), 64) * (place.call + 1))
                kept = {name: carried[at * count : (at + 1) * count] for at, name in enumerate(("x", "h", "y"))}
                own = {name: _rows(values, share) for name, values in kept.items()}
                steps[place.step].append(own | {"result": _even(outputs[0].float().reshape(-1, 1), _RESULTS)[:, 0]})
                if pieces.timestep is not None and not place.call and len(found) == 0:
                    times.append(float(inputs[pieces.timestep].max()))
                return outputs

            stand.handler = keep
            stand.begin()
            run(seed)
            bar.tick()
            found.append(steps)
    if not found[0]:
        reason = f"its graph is not cut: {stand.refused}" if stand.refused else "the function did not call it"
        raise ValueError(f"nothing was recorded of the model: {reason}")
    if len({tuple(map(len, steps)) for steps in found}) > 1:
        raise ValueError("the recorded generations differ in their steps or calls: let the function run like ones")
    tensors = {
        name: torch.stack([
            torch.stack([torch.stack([one[name] for one in calls]) for calls in zip(*steps, strict=True)])
            for steps in found
        ])
        for name in ("x", "h", "y", "result")
    }  # fmt: skip
    about = {
        "model": fingerprint(model),
        "timesteps": times,
        "looks_at": looks_at,
        "sites": sites if isinstance(sites, str) else repr(sites),
        "form": "value" if forms == {"value"} else "residual",
    }
    return Recording(tensors, about)


def _config(looks_at: str, sites: Any) -> DiCacheConfig:
    if looks_at not in ("probe", "modulated"):
        raise ValueError(f"looks_at: expected 'probe' or 'modulated', got {looks_at!r}")
    if looks_at == "modulated":
        return DiCacheConfig(sites=sites, gate=PolynomialChange((1.0, 0.0), 1.0), estimator=Reuse(), probe_depth=0)
    if sites == "trunk":
        return DiCacheConfig()
    return DiCacheConfig(sites=sites, schedule=Schedule.every(2), estimator=Reuse(), probe_depth=0)


def _rows(values: list[Tensor], most_bytes: int) -> Tensor:
    """Rows of all values, [R, C] float32, an even choice of so many bytes."""
    rows = torch.cat([value.float().reshape(-1, value.shape[-1]) for value in values])
    return _even(rows, max(1, most_bytes // (4 * rows.shape[-1])))


def _even(rows: Tensor, most: int) -> Tensor:
    if rows.shape[0] <= most:
        return rows.cpu().clone()
    return rows[torch.linspace(0, rows.shape[0] - 1, most, device=rows.device).long()].cpu()
