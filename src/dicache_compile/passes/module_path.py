"""Turns the text of `nn_module_stack` into dotted module paths; no other file reads that text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import fx

# L['self'].__dict__['_modules']['blocks'].0.attn: names in brackets, numbers in brackets, names and numbers after dots.
_TOKEN = re.compile(r"\['([^']*)'\]|\[(\d+)\]|([A-Za-z_]\w*|\d+)")
_PLUMBING = {"__dict__", "_modules", "__self__", "__wrapped__", "_orig_mod", "cell_contents"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a ModuleList (or Sequential) that a node runs in."""

    owner: str  # "transformer_blocks"
    index: int
    call: str  # "" for the first call of this entry in the graph, "@1" for the second


def module_path(text: str) -> str:
    """`L['self'].__dict__['_modules']['blocks'].0.attn` -> `blocks.0.attn`; the root itself is ``."""
    text = re.sub(r"\.__closure__\[\d+\]", "", text)
    tokens = [named or number or plain for named, number, plain in _TOKEN.findall(text)]
    # The first two tokens are the frame's scope and the variable in it: L['self'], G['model'].
    return ".".join(token for token in tokens[2:] if token not in _PLUMBING)


def entries(node: fx.Node) -> tuple[Entry, ...]:
    """The ModuleList entries around a node, outermost first; empty where the node has no module stack."""
    found = []
    for key, (text, _) in (node.meta.get("nn_module_stack") or {}).items():
        owner, _, last = module_path(text).rpartition(".")
        if last.isdigit():
            found.append(Entry(owner, int(last), key[key.find("@") :] if "@" in key else ""))
    return tuple(found)
