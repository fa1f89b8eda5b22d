"""Whom a report, a reset or a change is about: a compiled model or its original, or the denoisers of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from .calls.adjustments import adjusted
from .calls.refusals import Refusal, refusals_of
from .calls.session import Session, sessions_of
from .compiled import original, own_config
from .config import DiCacheConfig


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, with what is known of its runs; the session that was called last comes last."""

    name: str  # in the pipeline; "" of a model by itself
    model: nn.Module  # the original one
    compiled: DiCacheConfig | None  # what it is compiled with, where that can be told
    sessions: list[Session]  # of that config; of all where it cannot
    others: list[Session]  # of other configs
    refused: Refusal | None  # what was not cached of it, if anything; of several graphs the heaviest

    @property
    def config(self) -> DiCacheConfig | None:
        """The config in force for the next generation."""
        if self.sessions:
            return self.sessions[-1].told.config
        return adjusted(self.model, self.compiled) if self.compiled is not None else None


def subjects(given: object) -> list[Subject]:
    """The models that are meant, at least one. Raises TypeError for what is neither a module nor a pipeline with one.

    A pipeline is what has `components`, as those of diffusers do.
    """
    if isinstance(given, nn.Module):
        return [_subject("", given)]
    components = getattr(given, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(f"expected a torch.nn.Module, compiled or not, or a pipeline, got {type(given).__name__}")
    modules = {str(name): part for name, part in components.items() if isinstance(part, nn.Module)}
    found = [_subject(name, part) for name, part in modules.items()]
    known = [one for one in found if one.compiled is not None or one.sessions or one.refused is not None]
    if not known:
        raise TypeError(
            f"no model of this {type(given).__name__} is compiled with dicache_backend: compile one first, as in "
            f"pipe.{_denoiser(modules)}.compile(backend=dicache_backend)"
        )
    return known


def why_nothing_ran(one: Subject) -> str:
    """Why nothing is known of runs of a model under its own config."""
    if one.refused is not None and not one.sessions:
        return f"this model runs uncached: {one.refused.reason}"
    if one.compiled is None:
        return "this model has not been called since it was compiled with dicache_backend, if it was"
    if not one.others:
        return "this model has not been called since it was compiled"
    return (
        f"the config that this model is compiled with ({one.compiled.brief()}) has not run; the same model ran with "
        f"{one.others[-1].config.brief()}. If it was called, Dynamo did not compile it again: see "
        "torch._dynamo.config.recompile_limit, and configure(), which needs no compiling"
    )


def _denoiser(modules: Mapping[str, nn.Module]) -> str:
    return next((name for name in ("transformer", "unet") if name in modules), next(iter(modules), "transformer"))


def _subject(name: str, model: nn.Module) -> Subject:
    compiled, sessions = own_config(model), sessions_of(model)
    own = [session for session in sessions if compiled is None or session.config == compiled]
    others = [session for session in sessions if session not in own]
    refused = [refusal for refusal in refusals_of(model) if compiled is None or refusal.config == compiled]
    heaviest = max(refused, key=lambda refusal: refusal.heavy, default=None)
    return Subject(name, original(model), compiled, own, others, heaviest)
