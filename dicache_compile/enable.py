"""One line for a pipeline or a model: `enable_cache(pipe)`, undone by `disable_cache(pipe)`."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .armed import Armed
from .backend import dicache_backend
from .calls.adjustments import forget
from .calls.guidance_batch import ORDERS, GuidanceBatch, Order
from .calls.session import sessions_of
from .compiled import capture_all, original, own_config
from .config import DiCacheConfig
from .configure import configure
from .explain import explain
from .explanation import Explanation
from .integrations.families import published_preset
from .options import split_options
from .packages import package_of
from .presets import parameters_of
from .reset import reset
from .summary import Summary, summary

DENOISERS = ("transformer", "transformer_2", "transformer_3")  # the components of a pipeline that are compiled
# What a model was called by before: None, or what it was compiled with.
_before: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Enabled:
    """What `enable_cache` did; `str()` tells it in three lines."""

    models: Mapping[str, nn.Module]  # by component of the pipeline; of a model by itself ""
    config: DiCacheConfig

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The models, by which `summary`, `explain`, `configure` and `reset` take this in place of the pipeline."""
        return self.models

    def summary(self) -> Summary:
        """What each step did: `summary` of it."""
        return summary(self)

    def explain(self) -> Explanation:
        """What was cut, after the first call: `explain` of it."""
        return explain(self)

    def configure(self, **fields: Any) -> DiCacheConfig:
        """Changes fields of the config from the next generation on, without compiling: `configure` of it."""
        return configure(self, **fields)

    def reset(self) -> None:
        """Forgets all streams, and frees their state: `reset` of it."""
        reset(self)

    def disable(self) -> None:
        """Undoes what `enable_cache` did: `disable_cache` of it."""
        disable_cache(self)

    def __str__(self) -> str:
        names = (f"{name or 'model'} ({type(model).__name__})" for name, model in self.models.items())
        return "\n".join(
            (
                f"dicache on {', '.join(names)}",
                f"config     {self.config.brief()}",
                "next       the first call compiles; then summary() tells what was reused, disable_cache() undoes it",
            )
        )


def enable_cache(
    pipe_or_model: Any,
    config: DiCacheConfig | None = None,
    *,
    preset: str | None = None,
    compile: bool = True,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    guidance_batch: Order | None = None,
    **fields: Any,
) -> Enabled:
    """Compiles the denoisers of a diffusers pipeline, or one model, in place with `dicache_backend`.

    The models stay the objects that they are. `fields` are fields of DiCacheConfig, such as `quality`; they take the
    place of those of `config`. `preset` stands in for `config`: "published" is that of the paper's scripts for the
    models' class, and the others are those of `DiCacheConfig.preset`, whose parameters are `fields`, too. With
    `compile=False` the cut graph runs uncompiled, to look for faults; it is bit-exact then. `fullgraph` and `dynamic`
    are those of torch.compile. A model that has a cache of ours already gets the new config. `guidance_batch` is for
    pipelines that send both branches of guidance as one batch: "negative first", as nearly all do, or "negative last".
    Each branch is then a call and a stream of its own (`split_guidance`), as preset="fastercache" needs it.

    Raises TypeError for what is neither a pipeline nor a model, and for a pipeline that denoises with a UNet;
    ValueError where another cache is enabled, for a preset that there is none of, and as DiCacheConfig does. Then
    nothing is changed.
    """
    if guidance_batch is not None and guidance_batch not in ORDERS:
        raise ValueError(f"guidance_batch: expected 'negative first', 'negative last' or None, got {guidance_batch!r}")
    models = denoisers(pipe_or_model)
    base, more = _base(config, preset, fields, models)
    options = {**base.options(), **more, **({} if compile else {"lowering": "eager"})}
    found, settings = split_options(options, None)
    for name, model in models.items():
        _check_free(name, model, pipe_or_model)
    for model in models.values():
        if own_config(model) is not None:
            disable_cache(model)
        _before[model] = model._compiled_call_impl
        model.compile(
            backend=dicache_backend, fullgraph=fullgraph, dynamic=dynamic, options={**found.options(), **settings}
        )
        capture_all(model)
        model._compiled_call_impl = Armed(model)
        if guidance_batch is not None:
            model._compiled_call_impl = GuidanceBatch(model._compiled_call_impl, model._call_impl, guidance_batch)
    return Enabled(models, found)


def disable_cache(pipe_or_model: Any) -> None:
    """Undoes `enable_cache`: the models are called as they were before, and what was kept for them is freed.

    Raises TypeError as `enable_cache` does, and ValueError where no cache of ours is enabled.
    """
    models = {name: model for name, model in denoisers(pipe_or_model).items() if own_config(model) is not None}
    if not models:
        raise ValueError("no cache of dicache_compile is enabled here, so there is none to disable")
    for model in models.values():
        model._compiled_call_impl = _before.pop(model, None)
        for session in sessions_of(model):
            with session.lock:
                session.reset()
                session.tell(session.config)  # what `configure` said goes with the cache that it was said to
        forget(model)


def _base(
    config: DiCacheConfig | None, preset: str | None, fields: Mapping[str, Any], models: Mapping[str, nn.Module]
) -> tuple[DiCacheConfig, Mapping[str, Any]]:
    """(the config that fields are changed of, those that are left to change)."""
    if preset is None:
        found = config if config is not None else DiCacheConfig()
        if not isinstance(found, DiCacheConfig):
            raise TypeError(f"config: expected a DiCacheConfig, got {type(found).__name__}")
        return found, fields
    if config is not None:
        raise ValueError(f"preset={preset!r} stands in for config: give one of them, and fields beside it")
    names = {published_preset(model) for model in models.values()} if preset == "published" else {preset}
    if len(names) > 1:
        raise ValueError(f"preset='published': the models are of several families, {sorted(names)}: enable each alone")
    name = names.pop()
    ours = {*(field.name for field in dataclasses.fields(DiCacheConfig)), *parameters_of(name)}
    own = {field: value for field, value in fields.items() if field in ours}
    return DiCacheConfig.preset(name, **own), {field: fields[field] for field in fields.keys() - own.keys()}


def denoisers(given: Any) -> dict[str, nn.Module]:
    """The models to compile, by component."""
    if isinstance(given, Enabled):
        return dict(given.models)
    if isinstance(given, nn.Module):
        if original(given) is not given:
            raise TypeError("this is what torch.compile returned: give the model itself, which is compiled in place")
        return {"": given}
    components = getattr(given, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(f"expected a diffusers pipeline or a torch.nn.Module, got {type(given).__name__}")
    found = {name: components[name] for name in DENOISERS if isinstance(components.get(name), nn.Module)}
    if not found:
        what = "denoises with a UNet, whose blocks differ in shape" if "unet" in components else "has no transformer"
        raise TypeError(f"this {type(given).__name__} {what}: there is nothing to cache")
    return found


def _check_free(name: str, model: nn.Module, given: Any) -> None:
    """Raises ValueError where another cache is enabled."""
    where = f"pipe.{name}" if name else "model"
    if package_of(model) is not None:
        raise ValueError(f"{where} runs a package, which has its cache: configure(package, ...) changes its settings")
    if getattr(model, "is_cache_enabled", False):
        raise ValueError(f"{where} has a cache of diffusers: call {where}.disable_cache() first")
    if getattr(model, "_is_cached", False) or getattr(given, "_is_cached", False):
        raise ValueError(f"{where} has a cache of cache-dit: call cache_dit.disable_cache(...) first")
