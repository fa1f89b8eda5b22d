"""Records uncached generations for calibrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import whole
from ..config import DiCacheConfig
from ..estimators import Reuse
from ..gates import PolynomialChange
from ..schedules import Schedule
from .kept import EvenRows
from .progress import progress_bar
from .recording import Recording, fingerprint
from .standing import Place, standing
from .taps import Inputs, Taps

_RESULTS = 4096  # numbers that are kept of each result
_ENDS = ("x", "h", "y")
_Call = tuple[dict[str, int], Tensor]  # (by name which of the kept rows are its, numbers of its result)
_Steps = list[list[_Call]]


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

    Raises ValueError for less than one sample or byte; where the function does not call the model, or its graph is not
    cut; and where runs differ in their steps or sizes.
    """
    whole("samples", samples, 1)
    whole("most_bytes", most_bytes, 1)
    config, rows, found, times, forms = _config(looks_at, sites), EvenRows(most_bytes), list[_Steps](), [], set[str]()
    with standing(model, config) as stand, progress_bar("recording", progress) as bar, torch.no_grad():
        bar.phase("recording", samples)
        for seed in range(samples):
            steps: _Steps = []

            def keep(place: Place, pieces: Taps, inputs: Inputs, steps: _Steps = steps) -> Any:
                outputs, *carried = pieces.whole(*inputs)
                if place.step == len(steps):
                    steps.append([])
                count = len(pieces.carried)
                forms.update(value.form for value in pieces.carried)
                kept = {name: carried[at * count : (at + 1) * count] for at, name in enumerate(_ENDS)}
                own = {name: rows.add(_rows(values)) for name, values in kept.items()}
                steps[place.step].append((own, _some(outputs[0].float().reshape(-1))))
                if pieces.timestep is not None and not place.call and not found:
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
    if len({tuple(map(len, steps)) for steps in found}) > 1 or len(set(map(len, found[0]))) > 1:
        raise ValueError("the recorded generations differ in their steps or calls: let the function run like ones")

    def together(of: Callable[[_Call], Tensor]) -> Tensor:
        return torch.stack([
            torch.stack([torch.stack(list(map(of, calls))) for calls in zip(*steps, strict=True)]) for steps in found
        ])  # fmt: skip

    tensors = {name: together(lambda call, name=name: rows.kept[call[0][name]]) for name in _ENDS}  # type: ignore[misc]
    tensors["result"] = together(lambda call: call[1])
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


def _rows(values: list[Tensor]) -> Tensor:
    """The rows of all values, one after another: [R, C]."""
    return torch.cat([value.reshape(-1, value.shape[-1]) for value in values])


def _some(numbers: Tensor) -> Tensor:
    """An even choice of a result's numbers."""
    if len(numbers) <= _RESULTS:
        return numbers.cpu().clone()
    return numbers[torch.linspace(0, len(numbers) - 1, _RESULTS, device=numbers.device).long()].cpu()
