"""The form of what a call takes or returns: where its tensors are, and what the rest is. Held as JSON.

{"tensor": 0}                              the first tensor
{"value": 3.5}                             None, a bool, a number or a text
{"list": [...]}, {"tuple": [...]}          of other forms
{"dict": {"scale": ...}}                   by names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

Form: TypeAlias = Mapping[str, Any]
_PLAIN = (bool, int, float, str, type(None))


def form_of(given: Any, place: Callable[[Tensor], int], where: str = "") -> Form:
    """The form of something, with the place of each tensor in it.

    Raises TypeError, naming where it is, for what is none of these.
    """
    if isinstance(given, Tensor):
        return {"tensor": place(given)}
    if type(given) in _PLAIN:
        return {"value": given}
    if type(given) in (list, tuple):
        parts = [form_of(one, place, f"{where}[{number}]") for number, one in enumerate(given)]
        return {type(given).__name__: parts}
    if type(given) is dict and all(isinstance(name, str) for name in given):
        return {"dict": {name: form_of(one, place, f"{where}.{name}") for name, one in given.items()}}
    raise TypeError(f"{where} is a {type(given).__name__}")


def fill(form: Form, tensors: Sequence[Any]) -> Any:
    """What has this form, of these tensors."""
    ((kind, inner),) = form.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "value":
        return inner
    if kind == "dict":
        return {name: fill(one, tensors) for name, one in inner.items()}
    parts = (fill(one, tensors) for one in inner)
    return tuple(parts) if kind == "tuple" else list(parts)


def tensors_of(form: Form, given: object, where: str) -> list[Tensor]:
    """The tensors of something of this form, in their order. Raises TypeError or ValueError where it has another."""
    found: dict[int, Tensor] = {}
    _take(form, given, where, found)
    return [found[place] for place in sorted(found)]


def _take(form: Form, given: Any, where: str, found: dict[int, Tensor]) -> None:
    ((kind, inner),) = form.items()
    if kind == "tensor":
        if not isinstance(given, Tensor):
            raise TypeError(f"{where}: expected a tensor, got {_text(given)}")
        found[inner] = given
        return
    if kind == "value":
        if type(given) is not type(inner):
            raise TypeError(f"{where}: expected {inner!r}, got {_text(given)}")
        if given != inner:
            raise ValueError(f"{where}: the package was made for {inner!r}, got {given!r}: make one for it")
        return
    if type(given).__name__ != kind:
        raise TypeError(f"{where}: expected a {kind}, got {_text(given)}")
    parts, own = (one if kind == "dict" else dict(enumerate(one)) for one in (inner, given))
    if parts.keys() != own.keys():
        raise ValueError(f"{where}: expected {_listed(kind, parts)}, got {_listed(kind, own)}")
    for name, one in parts.items():
        _take(one, own[name], f"{where}.{name}" if kind == "dict" else f"{where}[{name}]", found)


def _text(given: object) -> str:
    return repr(given) if type(given) in _PLAIN else f"a {type(given).__name__}"


def _listed(kind: str, names: Any) -> str:
    return f"{len(names)} items" if kind != "dict" else ", ".join(names) or "nothing"
