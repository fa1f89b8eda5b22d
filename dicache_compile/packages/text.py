"""A program as JSON, and back. Each value has a number, its register; `docs/package.md` says what every name means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import fx

from ..lowering.chain import Callee, Chain, Link
from ..program import Choose, Kind, Op, Piece, Program, Run, Slot, Value
from .aot import Named

Text = dict[str, Any]


def program_text(program: Program, callees: Mapping[str, Callee], shapes: Mapping[str, tuple[int, ...]]) -> Text:
    """A program whose pieces are compiled to these; the shapes are those of its slots."""
    places = program.registers
    pieces = {piece.name: piece for piece in (*program.pieces(), *filter(None, [program.reused]))}
    return {
        "registers": [[value.kind.value, value.name] for value in places],
        "state": [_slot_text(slot, shapes[slot.name]) for slot in program.slots],
        "pieces": {name: _piece_text(piece, callees[name], places) for name, piece in pieces.items()},
        "ops": [_op_text(op, places) for op in program.ops],
        "reused": program.reused.name if program.reused is not None else None,
        "outputs": [places[value] for value in program.outputs],
    }


def read_program(text: Text) -> Program:
    """The program, with pieces whose graphs are empty."""
    values = [Value(Kind(kind), name) for kind, name in text["registers"]]
    empty = fx.GraphModule({}, fx.Graph())
    pieces = {
        name: Piece(name, empty, *(tuple(values[place] for place in one[end]) for end in ("reads", "gives")))
        for name, one in text["pieces"].items()
    }

    def op(one: Text) -> Op:
        if "run" in one:
            return Run(pieces[one["run"]])
        return Choose(values[one["choose"]], *(tuple(map(op, one[way])) for way in ("deep", "reused")))

    program = Program(
        ops=tuple(map(op, text["ops"])),
        inputs=tuple(value for value in values if value.kind is Kind.INPUT),
        slots=tuple(_slot(one) for one in text["state"]),
        outputs=tuple(values[place] for place in text["outputs"]),
        reused=pieces[text["reused"]] if text["reused"] is not None else None,
    )
    assert list(program.registers) == values
    return program


def read_pieces(text: Text, run: Callable[[str], Callee]) -> dict[str, Chain]:
    """What runs each piece; `run` gives what runs a graph."""
    return {name: _chain(one, run) for name, one in text["pieces"].items()}


def _piece_text(piece: Piece, callee: Callee, places: Mapping[Value, int]) -> Text:
    made = callee.chain() if isinstance(callee, Named) else callee
    assert isinstance(made, Chain)
    return {
        "reads": [places[value] for value in piece.reads],
        "gives": [places[value] for value in piece.gives],
        "links": [_link_text(link) for link in made.links],
        "places": len(piece.reads) + made.given,
        "outputs": [{"place": place} if place >= 0 else {"value": known} for place, known in made.outputs],
    }


def _link_text(link: Link) -> Text:
    assert isinstance(link.run, Named)
    return {"graph": link.run.name, "reads": link.reads, "gives": link.gives, "over": link.over}


def _chain(text: Text, run: Callable[[str], Callee]) -> Chain:
    links = [Link(run(one["graph"]), *(tuple(one[end]) for end in ("reads", "gives", "over"))) for one in text["links"]]
    outputs = tuple((one.get("place", -1), one.get("value")) for one in text["outputs"])
    return Chain(tuple(links), text["places"] - len(text["reads"]), outputs)


def _op_text(op: Op, places: Mapping[Value, int]) -> Text:
    if isinstance(op, Run):
        return {"run": op.piece.name}
    deep, reused = ([_op_text(one, places) for one in way] for way in (op.deep, op.reused))
    return {"choose": places[op.by], "deep": deep, "reused": reused}


def _slot_text(slot: Slot, shape: Sequence[int]) -> Text:
    return {one.name: _plain(getattr(slot, one.name)) for one in fields(Slot)} | {"shape": list(shape)}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return dtype_text(value)
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, torch.device) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _slot(text: Text) -> Slot:
    like = fx.Graph().placeholder(text["like"]) if text["like"] is not None else None  # its shape is in the text
    return Slot(
        name=text["name"],
        like=like,
        shape=tuple(text["shape"]),
        dtype=dtype_of(text["dtype"]),
        device=torch.device(text["device"]),
        initial=float(text["initial"]),
        by_token=text["by_token"],
        of_rows=text["of_rows"],
        of_request=text["of_request"],
    )


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(text: str) -> torch.dtype:
    found = getattr(torch, text)
    assert isinstance(found, torch.dtype)
    return found
