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
    """One entry of a container (a ModuleList, Sequential or ModuleDict) that a node runs in."""

    owner: str  # the container: "transformer_blocks"
    key: str  # "0", or a name in a ModuleDict
    call: str  # "" for the first call of this entry in the graph, "@1" for the second; always "" where it is not called
    kind: str  # the class of the entry; "" where it is not called itself, only its parts are

    @property
    def is_called(self) -> bool:
        return bool(self.kind)


def module_path(text: str) -> str:
    """`L['self'].__dict__['_modules']['blocks'].0.attn` -> `blocks.0.attn`; the root itself is ``."""
    text = re.sub(r"\.__closure__\[\d+\]", "", text)
    tokens = [named or number or plain for named, number, plain in _TOKEN.findall(text)]
    # The first two tokens are the frame's scope and the variable in it: L['self'], G['model'].
    return ".".join(token for token in tokens[2:] if token not in _PLUMBING)


def entries(node: fx.Node) -> tuple[Entry, ...]:
    """The entries of containers around a node, outermost first; empty where the node has no module stack.

    A container is a module that is not called itself, while something inside of it is, or one with numbered entries.
    """
    found: dict[tuple[str, str], Entry] = {}
    called: set[str] = set()
    for key, (text, kind) in (node.meta.get("nn_module_stack") or {}).items():
        path = module_path(text)
        tokens = path.split(".")
        for i in range(1, len(tokens)):
            owner, entry = ".".join(tokens[:i]), tokens[i]
            own = i == len(tokens) - 1
            if owner in called and not (own and entry.isdigit()):
                continue
            if own:
                call = key[key.find("@") :] if "@" in key else ""
                found[owner, entry] = Entry(owner, entry, call, getattr(kind, "__name__", str(kind)))
            elif entry.isdigit():
                found.setdefault((owner, entry), Entry(owner, entry, "", ""))
        called.add(path)
    return tuple(found.values())
