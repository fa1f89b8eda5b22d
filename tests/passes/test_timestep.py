"""Which input is the timestep: by name, by form, by use, or by what the user says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, dicache_backend, explain, summary
from dicache_compile.cut import cut
from dicache_compile.errors import UncachedWarning, UnsupportedGraphError
from dicache_compile.graph.input_names import input_name
from tests import models
from tests.contract.test_contract import STEPS
from tests.helpers.graphs import captured
from tests.helpers.published import published


class Denoiser(models.SingleStream):
    """Two blocks and what the forms of `forward` below are written with."""

    def __init__(self) -> None:
        super().__init__(2)
        self.embed_number = nn.Linear(1, self.width)

    def denoise(self, latents: Tensor, time: Tensor) -> Tensor:
        """`time`: [B, W]."""
        carried = {"x": self.embed(latents), "time": time}
        return self.leave(self.run(carried, 0, self.depth))

    def waves(self, time: Tensor) -> Tensor:
        """[B] to [B, W]."""
        return self.embed_time(models.sinusoid(time, self.width))


def made(forward: Any) -> Denoiser:
    torch.manual_seed(0)
    return type("Made", (Denoiser,), {"forward": forward})().eval().requires_grad_(False)


B, T, W = 2, 6, 16
LATENTS, TIME, EMBEDDED = torch.randn(B, T, 4), torch.rand(B), torch.randn(B, W)
IDS = torch.arange(T)[:, None].repeat(1, 3).float()


@torch.no_grad()
def timestep_of(forward: Any, *args: Any, timestep_input: str | None = None, **kwargs: Any) -> str:
    gm, examples = captured(made(forward), *args, **kwargs)
    found = cut(gm, examples, DiCacheConfig(timestep_input=timestep_input)).inputs.timestep
    assert found is not None
    return input_name(found)


def by_waves(self: Denoiser, x_t: Tensor, log_snr: Tensor) -> Tensor:
    return self.denoise(x_t, self.waves(log_snr))


def by_projection(self: Denoiser, x_t: Tensor, logsnr: Tensor) -> Tensor:
    return self.denoise(x_t, self.embed_number(logsnr[:, None]))


def by_fourier_features(self: Denoiser, x_t: Tensor, c_noise: Tensor) -> Tensor:
    angles = c_noise[:, None] @ self.embed_number.weight.T
    return self.denoise(x_t, self.embed_time(angles.sin()))


def of_tokens(self: Denoiser, hidden: Tensor, t: Tensor) -> Tensor:
    return self.denoise(hidden, self.waves(t.flatten()).unflatten(0, t.shape).mean(1))


def of_frames(self: Denoiser, hidden: Tensor, noise_levels: Tensor) -> Tensor:
    return self.denoise(hidden, self.embed_number(noise_levels[..., None]).mean((1, 2)))


def in_a_dict(self: Denoiser, batch: dict[str, Tensor]) -> Tensor:
    x = batch["noisy"] + batch["ids"].sin().mean()
    return self.denoise(x, self.waves(batch["timestep"]))


def by_keywords(self: Denoiser, hidden: Tensor, **kwargs: Any) -> Tensor:
    return self.denoise(hidden + kwargs["ids"].cos().mean(), self.waves(kwargs["model_kwargs"]["t"]))


def in_a_list(self: Denoiser, hidden: Tensor, timesteps: list[Tensor]) -> Tensor:
    return self.denoise(hidden, self.waves(timesteps[0]))


def looked_up(self: Denoiser, x_t: Tensor, t: Tensor) -> Tensor:
    return self.denoise(x_t, self.embed_time.weight[t])


def with_another(
    self: Denoiser, hidden: Tensor, sigma_data: Tensor, target_timestep: Tensor, timestep: Tensor
) -> Tensor:
    return self.denoise(hidden * sigma_data, self.waves(target_timestep) + self.waves(timestep))


@pytest.mark.parametrize(
    ("forward", "args", "kwargs", "expected"),
    [
        (by_waves, (LATENTS, TIME), {}, "log_snr"),
        (by_projection, (LATENTS, TIME), {}, "logsnr"),
        (by_fourier_features, (LATENTS, TIME), {}, "c_noise"),
        (looked_up, (LATENTS, torch.tensor([3, 3])), {}, "t"),
        (of_tokens, (LATENTS, torch.rand(B, T)), {}, "t"),
        (of_frames, (LATENTS, torch.rand(B, 1, 3)), {}, "noise_levels"),
        (in_a_dict, ({"noisy": LATENTS, "ids": IDS, "timestep": TIME},), {}, "batch.timestep"),
        (by_keywords, (LATENTS,), {"ids": IDS, "model_kwargs": {"t": TIME}}, "model_kwargs.t"),
        (in_a_list, (LATENTS, [TIME]), {}, "timesteps.0"),
        (with_another, (LATENTS, torch.ones(B, 1, 1), TIME, TIME.clone()), {}, "timestep"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_timestep_is_found_in_every_form_that_it_has(
    forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: str
) -> None:
    assert timestep_of(forward, *args, **kwargs) == expected


def of_ids(self: Denoiser, hidden: Tensor, ids: Tensor, timestep: float) -> Tensor:
    angles = ids.sum(-1)[:, None] * torch.ones(4)
    x = hidden * angles.cos() + hidden.flip(-1) * angles.sin()
    return self.denoise(x, self.waves(torch.full((len(hidden),), timestep)))


def of_guidance(self: Denoiser, hidden: Tensor, guidance: Tensor, timestep: float) -> Tensor:
    return self.denoise(hidden, self.waves(torch.full((len(hidden),), timestep)) + self.waves(guidance))


def embedded(self: Denoiser, hidden: Tensor, t: Tensor) -> Tensor:
    return self.denoise(hidden, t)


def timeless(self: Denoiser, x_t: Tensor) -> Tensor:
    return self.denoise(x_t, self.waves(torch.zeros(len(x_t))))


@pytest.mark.parametrize(
    ("forward", "args", "reason"),
    [
        (
            of_ids,
            (LATENTS, IDS, 0.5),
            r"no timestep .* \(`timestep` is a Python number, .*: pass it as a tensor\); name",
        ),
        (of_guidance, (LATENTS, TIME, 0.5), r"no timestep .* \(`timestep` is a Python number"),
        (embedded, (LATENTS, EMBEDDED), r"`t` of size \[2, 16\] has a timestep's name, but the form .* an embedding"),
        (timeless, (LATENTS,), r"`x_t` of size \[2, 6, 4\] has a timestep's name, but the form and the use of latents"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nothing_else_is_taken_for_a_timestep_and_the_refusal_says_what_to_set(
    forward: Any, args: tuple[Any, ...], reason: str
) -> None:
    model = made(forward)
    told = explain(model, *args)
    assert not told.cached
    with pytest.warns(UncachedWarning, match=reason + r".*timestep_input=") as caught, torch.no_grad():
        torch.compile(model, backend=dicache_backend, options=DiCacheConfig(lowering="eager").options())(*args)
    assert told.reason is not None
    assert told.reason in str(caught[0].message)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_python_number_that_changes_is_no_reason_to_take_another_input(dynamic: bool | None) -> None:
    model = made(of_guidance)
    options = published(lowering="eager").options()
    call = torch.compile(model, backend=dicache_backend, options=options, dynamic=dynamic)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncachedWarning)
        for step in range(4):
            call(LATENTS, TIME, 10 - step)
    assert summary(model).generations == []


def of_two(self: Denoiser, hidden: Tensor, first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor:
    return self.denoise(hidden, self.waves(first["timestep"]) + self.waves(second["timestep"]))


def test_the_end_of_a_path_names_an_input_unless_it_may_be_several() -> None:
    args = (LATENTS, {"timestep": TIME}, {"timestep": TIME.clone()})
    assert timestep_of(of_two, *args, timestep_input="second.timestep") == "second.timestep"
    with pytest.raises(UnsupportedGraphError, match=r"may be any of first\.timestep, second\.timestep; give"):
        timestep_of(of_two, *args, timestep_input="timestep")
    of_one = {"noisy": LATENTS, "ids": IDS, "timestep": TIME}
    assert timestep_of(in_a_dict, of_one, timestep_input="timestep") == "batch.timestep"
    assert timestep_of(in_a_dict, of_one, timestep_input="ids") == "batch.ids"


class Hooked(Denoiser):
    """What accelerate's hooks make of a model: `forward` is wrapped, and Dynamo's graph breaks in the wrapper."""

    def forward(self, hidden: Tensor, ids: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        return self.denoise(hidden + ids.sin().mean(), self.waves(timestep))


def hook(module: nn.Module) -> None:
    inner = module.forward

    def before(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        torch._dynamo.graph_break()
        return args, kwargs

    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = before(*args, **kwargs)
        return inner(*args, **kwargs)

    module.forward = forward


@pytest.mark.parametrize("name", [None, "timestep"])
def test_a_timestep_that_a_hook_has_handed_on_is_found(name: str | None) -> None:
    torch.manual_seed(0)
    model = Hooked().eval().requires_grad_(False)
    hook(model)
    options = published(lowering="eager", threshold=float("inf"), timestep_input=name).options()
    model.compile(backend=dicache_backend, options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UncachedWarning)
        for step in range(STEPS):
            model(hidden=LATENTS + step, ids=IDS, timestep=TIME * 0 + 1 - step / STEPS)
    (generation,) = summary(model).generations
    assert "".join(".D"[step.deep] for step in generation.streams["0"]) == "DDD...D..."
    assert [step.timestep for step in generation.streams["0"]] == pytest.approx([1 - s / STEPS for s in range(STEPS)])
