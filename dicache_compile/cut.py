"""Takes one graph through all passes, and writes its program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .collecting import no_garbage_collection
from .config import DiCacheConfig
from .errors import LatentsError, RowsError, TrainingError, UnsupportedGraphError
from .graph.dataflow import Dataflow
from .graph.fragment import broken_function, resumed_function
from .passes.inline import has_checkpoints
from .passes.pipeline import Passed, run_passes
from .passes.timestep import find_timestep
from .plan import Asked, AskedRule, Inputs, Partition, Plan
from .program import Program
from .rules import GuidedEstimator, TokenEstimator
from .write import write_program


@dataclass(frozen=True, slots=True)
class Cut:
    """A graph after all passes, and what runs on a step."""

    plan: Plan
    program: Program
    is_alone: bool  # whether Dynamo makes this graph alone of a call, as far as the graph tells

    @property
    def partition(self) -> Partition:
        """The first one."""
        return self.plan.partition

    @property
    def inputs(self) -> Inputs:
        return self.plan.inputs

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """One for each cut, in the order in which they run."""
        return self.plan.found

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(self.plan.graph_module.graph.find_nodes(op="placeholder"))


def cut(
    gm: fx.GraphModule,
    examples: Sequence[Any],
    config: DiCacheConfig,
    told: bool = False,
    watch: Callable[[Passed], None] | None = None,
) -> Cut:
    """Cuts a Dynamo graph; `gm` stays as it is. Raises UnsupportedGraphError with the reason where that cannot be.

    `told`: whether an earlier graph of the same call tells the timestep, should this one not have it. `watch` is told
    of each pass.
    """
    if reason := why_not_inference(gm, examples):
        raise TrainingError(reason)
    # Passes make many small objects that stay, and looking through all of a large process takes a second each time.
    with no_garbage_collection():
        plan = run_passes(Plan(gm, _asked(config, told)), watch)
        rules = config.rules_in_force()
        if plan.inputs.latents is None and any(isinstance(rule.estimator, GuidedEstimator) for rule in rules):
            raise LatentsError("it is not known which input is denoised, by which two calls of a step are told")
        if config.by_rows() and told and plan.inputs.timestep is None:
            raise RowsError("the timestep is told by an earlier graph of the same call, one for all rows")
        program = write_program(plan.found, plan.inputs, rules, plan.ranks)
        return Cut(plan, program, is_alone=broken_function(gm) is None and resumed_function(gm) is None)


def _asked(config: DiCacheConfig, told: bool) -> Asked:
    return Asked(
        trunk=config.trunk_owners(),
        rules=tuple(
            AskedRule(
                rule.blocks_on_every_step(),
                rule.asked_sites(),
                rule.form(),
                rule.measures(),
                rule.modulated(),
                gated=rule.make_gate() is not None,
                share=estimator.share if isinstance(estimator := rule.make_estimator(), TokenEstimator) else None,
            )
            for rule in config.all_rules()
        ),
        timestep_input=config.timestep_input,
        agree=config.group(),
        ranks_agree=config.ranks_agree,
        knows_time=told or config.counts_steps(),
        told=told,
    )


def told_timestep(gm: fx.GraphModule, config: DiCacheConfig) -> fx.Node | None:
    """The timestep among a graph's inputs, which later graphs of the same call may need; None if it is not there."""
    try:
        return find_timestep(Dataflow(gm.graph), config.timestep_input)
    except UnsupportedGraphError:  # the name is that of another graph's input
        return None


def why_not_inference(gm: fx.GraphModule, examples: Sequence[Any]) -> str | None:
    """The reason why a graph is for training, or None."""
    if not torch.is_grad_enabled():
        return None
    if any(isinstance(example, torch.Tensor) and example.requires_grad for example in examples):
        return "gradients are enabled and an input or a weight requires them"
    return "the blocks run under gradient checkpointing" if has_checkpoints(gm) else None
