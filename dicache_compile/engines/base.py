"""How a program is run. An engine runs one step of one stream; a new one is one more class here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from ..lowering import Lowering
from ..program import Kind, Op, Piece, Program, Run, Value
from ..write import single_graph

Pick = Callable[[Sequence[Any]], Sequence[Any]]
Watch = Callable[[Sequence[Any]], None]  # is told the registers of a step that has run


class State(Protocol):
    """What an engine needs of a stream's state: `calls.state.StreamState`."""

    recording: Any  # what the engine has captured for these tensors

    @property
    def values(self) -> Sequence[Tensor]:
        """The tensors, in the order of the program's slots."""
        ...


class Engine(Protocol):
    """Runs a step. Built once for a graph; what belongs to one stream comes with each call."""

    @property
    def name(self) -> str:
        """How the last step took its branch, or the next one will."""
        ...

    @property
    def reason(self) -> str | None:
        """Why not in the way that the config or the device would have it; None where it is that way."""
        ...

    def step(
        self,
        inputs: Sequence[Any],
        state: State,
        reused: bool = False,
        watch: Watch | None = None,
        held: object = None,
    ) -> Sequence[Any]:
        """The model's outputs for its inputs (in the order of its placeholders); updates `state`.

        `reused`: whether it is known that the step is reused; only where `Program.reused` tells what runs then.
        `watch` is for a look at the values of a step, where the engine can have one. While `held` is the same object,
        weights lie where they did.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoweredRun:
    """A compiled piece. It takes what it reads from the registers, and puts what it gives there."""

    run: Callable[..., Sequence[Any]]
    reads: Pick
    gives: tuple[int, ...]

    def __call__(self, registers: list[Any]) -> None:
        for place, result in zip(self.gives, self.run(*self.reads(registers)), strict=True):
            registers[place] = result


@dataclass(frozen=True, slots=True)
class LoweredChoice:
    """A choice between compiled pieces. On CUDA the look at the decision waits for the device."""

    by: int  # the register of the decision
    deep: tuple[LoweredOp, ...]
    reused: tuple[LoweredOp, ...]

    def __call__(self, registers: list[Any]) -> None:
        for op in self.reused if bool(registers[self.by]) else self.deep:
            op(registers)


LoweredOp: TypeAlias = "LoweredRun | LoweredChoice"


@dataclass(frozen=True, slots=True)
class LoweredProgram:
    """A program with its pieces compiled."""

    ops: tuple[LoweredOp, ...]
    given: int  # how many registers there are besides those of the inputs and the state
    outputs: Pick
    reused: LoweredRun | None = None  # all of a step that is known to be reused

    def registers(self, inputs: Sequence[Any], state: Sequence[Any]) -> list[Any]:
        """A register for each value of a step, of which the inputs and the state are known."""
        return [*inputs, *state, *(None,) * self.given]


def lower_program(program: Program, lower: Callable[[Piece], Callable[..., Sequence[Any]]]) -> LoweredProgram:
    """Compiles the pieces of a program, in the order in which they stand."""
    places = program.registers

    def lowered(ops: Sequence[Op]) -> tuple[LoweredOp, ...]:
        return tuple(map(one, ops))

    def run(piece: Piece) -> LoweredRun:
        return LoweredRun(lower(piece), _pick(piece.reads, places), tuple(places[value] for value in piece.gives))

    def one(op: Op) -> LoweredOp:
        if isinstance(op, Run):
            return run(op.piece)
        deep = lowered(op.deep)
        return LoweredChoice(places[op.by], deep, lowered(op.reused))

    known = len(program.inputs) + len(program.slots)
    ops, reused = lowered(program.ops), run(program.reused) if program.reused is not None else None
    return LoweredProgram(ops, len(places) - known, _pick(program.outputs, places), reused)


@dataclass(frozen=True, slots=True)
class CallsEngine:
    """Calls one piece after the other, with a look at the decision where there is a choice."""

    program: LoweredProgram
    reason: str | None = None

    @property
    def name(self) -> str:
        return "calls"

    def step(
        self,
        inputs: Sequence[Any],
        state: State,
        reused: bool = False,
        watch: Watch | None = None,
        held: object = None,
    ) -> Sequence[Any]:
        registers = self.program.registers(inputs, state.values)
        known = self.program.reused
        for op in (known,) if reused and known is not None else self.program.ops:
            op(registers)
        if watch is not None:
            watch(registers)
        return self.program.outputs(registers)


@dataclass(frozen=True, slots=True)
class CondEngine:
    """The single graph with its `cond`; the new state is copied over the old."""

    single: Callable[..., Sequence[Any]]
    reads: Pick
    outputs: int  # how many of the single graph's outputs are the model's
    written: tuple[int, ...]  # which slots the rest are
    reason: None = None

    @property
    def name(self) -> str:
        return "cond"

    def step(
        self,
        inputs: Sequence[Any],
        state: State,
        reused: bool = False,
        watch: Watch | None = None,
        held: object = None,
    ) -> Sequence[Any]:
        results = self.single(*self.reads((*inputs, *state.values)))
        for slot, new in zip(self.written, results[self.outputs :], strict=True):
            state.values[slot].copy_(new)
        return results[: self.outputs]


def cond_engine(program: Program, lower: Lowering) -> CondEngine:
    """Lowers the single graph of a program."""
    single, places = single_graph(program), program.registers
    written = [value for value in single.gives if value.kind is Kind.STATE]
    return CondEngine(
        single=lower(single),
        reads=_pick(single.reads, places),
        outputs=len(program.outputs),
        written=tuple(places[value] - len(program.inputs) for value in written),
    )


def _pick(values: Sequence[Value], places: Mapping[Value, int]) -> Pick:
    """Takes the values of these names from the registers."""
    chosen = [places[value] for value in values]
    # itemgetter gives a bare item for one place
    return itemgetter(*chosen) if len(chosen) > 1 else lambda known: tuple(known[place] for place in chosen)
