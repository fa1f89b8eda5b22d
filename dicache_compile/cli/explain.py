"""`dicache explain`: what would be cut of a model, without running it."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from rich.console import Group
from rich.text import Text
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ..enable import disable_cache
from ..explain import explain as explained
from ..explanation import Explanation
from .answer import Answer, AsJson, Debug, Mistake, errors, tell, users
from .diffusers_model import diffusers_call
from .factory import Call, Workload, is_factory, made
from .settings import Asked, Fields, Preset, asked

Target = Annotated[
    str,
    typer.Argument(
        help="A diffusers class (FluxTransformer2DModel), the folder of a diffusers model or pipeline, or "
        "module:factory, a function of yours that returns (model, kwargs) or (pipe, kwargs)."
    ),
]


def explain(
    target: Target,
    config: Fields = [],  # noqa: B006 - typer copies it
    preset: Preset = None,
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", metavar="FIELD=VALUE", help="A field of the diffusers model's own config."),
    ] = [],  # noqa: B006
    input: Annotated[
        list[str],
        typer.Option(
            "--input", "-i", metavar="NAME=SHAPE", help="An input, as in hidden_states=1x4096x64 or t=1:int64."
        ),
    ] = [],  # noqa: B006
    dtype: Annotated[str, typer.Option(help="Of a diffusers model's weights.")] = "bfloat16",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Make the diffusers model's weights, for one that reads values.")
    ] = False,
    passes: Annotated[bool, typer.Option("--passes", help="Tell what each pass did to the graph.")] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say how a model would be cut, or why not.

    Models of diffusers are made without weights: the real size is explained, and needs no memory.
    Exits with 1 where the model would not be cached.
    """

    def work() -> Answer:
        found = asked(config, preset)
        if is_factory(target):
            for option, value in (("--model", model), ("--input", input), ("--random-weights", random_weights)):
                if value:
                    raise Mistake(f"{option} is for models of diffusers, and {target} makes its own")
            given = made(target)
            call = given if isinstance(given, Call) else first_call(target, given)
        else:
            call = diffusers_call(target, model, input, dtype, random_weights)
        found.enable(call.model)  # compiles nothing yet: `explain` reads the config of it
        with errors().status(f"tracing a call of {type(call.model).__name__}"):
            about = _explained(call, passes)
        title = f"{type(call.model).__name__}, called with {_arguments(call)}"
        data = {"target": target, "model": type(call.model).__name__, **about.to_dict()}
        return Answer(data, Group(Text(title), Text(str(about))), about.cached)

    tell(work, json, debug)


def first_call(target: str, workload: Workload) -> Call:
    """The first call of a denoiser that sampling makes. Raises Mistake where it calls none."""
    models = Asked({}, None).enable(workload.subject).models.values()  # which are the denoisers of a pipeline
    disable_cache(workload.subject)
    handles = [one.register_forward_pre_hook(_stop, with_kwargs=True) for one in models]
    try:
        with users(f"sampling with {target}"), torch.no_grad():
            workload.generate(0)
    except _Called as called:
        return called.call
    finally:
        for handle in handles:
            handle.remove()
    names = " or ".join(type(one).__name__ for one in models)
    raise Mistake(f"sampling with {target} never called {names}")


class _Called(BaseException):
    """Ends a run at its first call."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


def _stop(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Called(Call(model, args, kwargs))


def _explained(call: Call, passes: bool) -> Explanation:
    name, weights = type(call.model).__name__, list(call.model.parameters())
    try:
        with users(f"a call of {name}"):
            return explained(call.model, *call.args, passes=passes, **call.kwargs)
    except Mistake as mistake:
        if not any(isinstance(one, FakeTensor) for one in weights):
            raise
        size = sum(one.numel() * one.element_size() for one in weights) / 2**30
        raise Mistake(
            f"{mistake}. The model was made without weights. If it reads values of tensors, add --random-weights: "
            f"{size:.1f} GiB, or less with fewer blocks (--model). If its inputs do not fit, give others (--input)"
        ) from mistake


def _arguments(call: Call) -> str:
    given = {**{str(place): one for place, one in enumerate(call.args)}, **call.kwargs}
    tensors = (f"{name} {list(one.shape)}" for name, one in given.items() if isinstance(one, torch.Tensor))
    return ", ".join(tensors) or "no tensor"
