"""The operators whose meaning is needed, by name; no other file has a list of such names.

A Dynamo graph calls `torch.*`, `operator.*` and methods, in place or not. `meaning` makes one name of these, and what
PyTorch's operator of that name says of itself (its schema, its tags) is asked first. Names stand here for the rest.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_CONVOLUTION = re.compile(r"_?conv(_transpose)?(\dd|olution)")


def name(node: fx.Node) -> str:
    """The short name of what a node calls: "linear", "add_", "setitem"; `aten.add.Tensor` is "add"."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def meaning(node: fx.Node) -> str:
    """The same for all ways to write one operation: "add" for `add_`, `iadd`, `__iadd__` and `__radd__`."""
    return _meaning(name(node))


@functools.cache
def _meaning(called: str) -> str:
    special = called.startswith("__") and called.endswith("__")
    plain = called[2:-2] if special else called
    if plain[:1] in ("ir" if special else "i") and _is_special(plain) and _is_special(plain[1:]):
        return plain[1:]
    return plain if special or called.endswith("__") else plain.removesuffix("_")


def _is_special(called: str) -> bool:
    return bool(called) and hasattr(torch.Tensor, f"__{called}__")


def overloads(target: Any) -> tuple[Any, ...]:
    """An operator of `torch.ops`, or all the overloads of one that is called without saying which."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        return tuple(getattr(target, overload) for overload in target.overloads())  # type: ignore[no-untyped-call]
    return (target,) if isinstance(target, torch._ops.OpOverload) else ()


def meant(node: fx.Node) -> tuple[Any, ...]:
    """The overloads that a node may call: its own, or those of PyTorch's operator of its name."""
    return overloads(node.target) or _named(name(node))


@functools.cache
def _named(called: str) -> tuple[Any, ...]:
    return overloads(getattr(torch.ops.aten, called, None))


@functools.cache
def _has_tag(called: str, tag: torch.Tag) -> bool:
    return any(tag in overload.tags for overload in _named(called))


@functools.cache
def _views(called: str) -> frozenset[str]:
    """The types of the views that an operator may give of its first operand: "Tensor", "List[Tensor]"."""
    schemas = [overload._schema for overload in _named(called)]
    return frozenset(str(s.returns[0].type) for s in schemas if s.returns and s.arguments and _shares(s))


def _shares(schema: Any) -> bool:
    given, taken = schema.returns[0].alias_info, schema.arguments[0].alias_info
    return given is not None and taken is not None and not given.is_write


def _any_of(*names: str) -> Callable[[fx.Node], bool]:
    return lambda node: meaning(node) in names


# What moves elements, by the schemas of views. What copies as it does so, or is no operator of PyTorch's, has names.


def is_view(node: fx.Node) -> bool:
    """Whether a node's value may be its operand's memory, with another shape or order or as it was."""
    return bool(_views(meaning(node)))


is_item = _any_of("getitem")  # Python's
shuffles = _any_of("roll", "flip", "gather", "index_select", "take_along_dim")  # copies that no strides can tell
_lays_out = _any_of("rearrange", "repeat", "repeat_interleave", "tile", "pad", "_unsafe_view")  # copies, too
_is_slice = _any_of("narrow", "slice")  # a view like others: that it is one part of its operand no schema says
joins = _any_of("cat", "concat", "concatenate")  # `stack` has the same schema


def is_layout(node: fx.Node) -> bool:
    """Whether a node does nothing but put elements at other places."""
    return is_view(node) or is_item(node) or _lays_out(node) or shuffles(node)


def takes_part(node: fx.Node) -> bool:
    """Whether a node takes a part of its operand, or takes it apart."""
    return is_item(node) or _is_slice(node) or "List[Tensor]" in _views(meaning(node))


def is_sized_as(node: fx.Node) -> bool:
    """Whether an operand is there for its size alone: of `view_as`, `expand_as`, `reshape_as`."""
    return name(node).endswith("_as")


# What leaves elements at their places. That a pointwise operator hands its operand on, rather than to make something
# else of it, no tag says.

is_addition = _any_of("add", "sub", "addcmul", "addcdiv")
is_product = _any_of("mul")  # as by a gate
_divides = _any_of("div", "truediv")
_blends = _any_of("where", "lerp")
normalises = _any_of("layer_norm", "rms_norm")
is_linear = _any_of("linear")
_converts = _any_of("to", "type", "type_as", "_to_copy")
_copies = _any_of("clone", "contiguous")
_corrects = _any_of("masked_fill", "clamp", "clip", "nan_to_num", "dropout")  # some elements, or none


def scales(node: fx.Node) -> bool:
    """Whether a node gives its operand scaled, element by element or with others."""
    return is_product(node) or _divides(node) or _blends(node) or normalises(node)


def is_cast(node: fx.Node) -> bool:
    """Whether a node gives its operand in another dtype: `to`, or a method that is called like one, as `half`."""
    return _converts(node) or isinstance(getattr(torch, name(node), None), torch.dtype)


def hands_on(node: fx.Node) -> bool:
    """Whether a node gives its operand as it was, but for rounding and for elements that are corrected."""
    return is_cast(node) or _copies(node) or _corrects(node)


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node computes element by element, by PyTorch's tags."""
    return any(torch.Tag.pointwise in overload.tags for overload in meant(node))


reshapes = _any_of("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view")
turns = _any_of("transpose", "permute", "movedim", "swapaxes", "chunk", "split", "unbind", "narrow", "expand", "glu")
reduces = _any_of("mean", "sum", "var", "std", "amax", "amin", "norm", "vector_norm")
# What a number of a whole is, of those of its parts.
OF_PARTS = {"mean": "mean", "sum": "sum", "nansum": "sum"}
OF_PARTS |= dict.fromkeys(("amax", "max"), "largest") | dict.fromkeys(("amin", "min"), "smallest")


# What is heavy, and what multiplies tokens with each other. `matmul`, `linear` and the like are composite: they have
# no flop formula, and no tag.

is_einsum = _any_of("einsum")
_multiplies = _any_of("matmul", "bmm", "baddbmm")
_multiplies_rows = _any_of("mm", "addmm")
is_dot_product = _any_of("scaled_dot_product_attention")
_mixes = _any_of("softmax", "_transformer_encoder_layer_fwd")
_HARDSWISH = "hardswish"  # has no tag


def is_convolution(node: fx.Node) -> bool:
    return _CONVOLUTION.fullmatch(name(node)) is not None


def is_contraction(node: fx.Node) -> bool:
    """Whether a node is a product that may be one of tokens with each other."""
    return _multiplies(node) or is_einsum(node)


def is_heavy(node: fx.Node) -> bool:
    """Whether a node is one of the operations that a transformer spends its time in."""
    is_matrix_product = is_contraction(node) or _multiplies_rows(node) or is_linear(node)
    return is_matrix_product or is_dot_product(node) or is_convolution(node)


def is_attention(node: fx.Node) -> bool:
    """Whether a node is a whole attention, by what it is called, whoever wrote it."""
    return "attention" in name(node) or "attn" in name(node)


def is_of_attention(node: fx.Node) -> bool:
    """Whether a node is an attention or a part that is in nothing else."""
    return is_attention(node) or _mixes(node)


def is_activation(node: fx.Node) -> bool:
    """Whether a node is the function between the linears of an MLP: a pointwise one of `torch.nn.functional`."""
    called = meaning(node)
    of_functional = hasattr(torch.nn.functional, called) and _has_tag(called, torch.Tag.pointwise)
    return of_functional or called == _HARDSWISH


is_wave = _any_of("sin", "cos")  # that a function is periodic no tag says

# What acts on more than its result. A write is told by a schema, or by a name that ends in "_".

_IN_PLACE = tuple(  # `operator.iadd`, ...; of `imatmul` tensors have no form that is in place
    getattr(operator, called) for called in dir(operator) if called[0] == "i" and _meaning(called) == called[1:]
)
_SETS = (operator.setitem, operator.delitem, "__setitem__")
_FLAG = "requires_grad_"  # whose schema says that it writes
enters_autocast, exits_autocast = _any_of("_enter_autocast"), _any_of("_exit_autocast")  # functions of Python
_switches_gradients = _any_of("_set_grad_enabled")
enters_vmap, exits_vmap = _any_of("_vmap_increment_nesting"), _any_of("_vmap_decrement_nesting")
_moves = _any_of("copy", "cuda")  # to another device, perhaps
_lists = _any_of("tolist")  # a method of Python
_calls_region = _any_of("invoke_subgraph")  # of a HigherOrderOperator nothing is known but its name


def writes(node: fx.Node) -> bool:
    """Whether a node changes its first argument, by what it is called."""
    if node.target in _IN_PLACE or node.target in _SETS:
        return True
    called = name(node)
    ends = called.endswith("_") and not called.endswith("__") and (called[0] != "_" or called.startswith("_foreach_"))
    # `operator.and_`, `or_`, `not_` and `is_` are named around Python's keywords.
    return ends and called != _FLAG and getattr(node.target, "__module__", "") != operator.add.__module__


def out_of_place(node: fx.Node) -> Callable[..., Any] | str | None:
    """What gives the same value as a call that writes to its first argument, for operators and common methods."""
    plain = meaning(node)
    if node.op == "call_function" and node.target in _IN_PLACE:
        return getattr(operator, plain, None) or getattr(operator, f"{plain}_")  # type: ignore[no-any-return]
    is_method = node.op == "call_method" and name(node) == f"{plain}_" and hasattr(torch.Tensor, plain)
    return plain if is_method and (is_addition(node) or scales(node) or _corrects(node)) else None


def switches_mode(node: fx.Node) -> bool:
    """Whether a node switches autocast or gradients."""
    return enters_autocast(node) or exits_autocast(node) or _switches_gradients(node)


def may_move(node: fx.Node) -> bool:
    """Whether a node may give its operand, or write it, on another device."""
    return _converts(node) or _moves(node)


def reads_on_host(node: fx.Node) -> bool:
    """Whether a node gives numbers of a tensor to Python."""
    return _lists(node) or any(torch.Tag.data_dependent_output in overload.tags for overload in meant(node))


def is_checkpoint(node: fx.Node) -> bool:
    return "checkpoint" in name(node)


def calls_graph(node: fx.Node) -> bool:
    """Whether a node does nothing but run a graph that is its first argument."""
    is_known = is_checkpoint(node) or _calls_region(node)
    return isinstance(node.target, torch._ops.HigherOrderOperator) and is_known
