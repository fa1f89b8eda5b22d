"""`dicache tune`: a schedule and weights for a user's own sampling."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..tune import tune as find
from .answer import Answer, AsJson, Debug, Mistake, tell
from .compare import Target
from .factory import FORMS, Workload, is_factory, made, with_steps


def tune(
    target: Target,
    deep: Annotated[int | None, typer.Option(min=1, help="So many deep steps.")] = None,
    speedup: Annotated[float | None, typer.Option(help="As many deep steps as are expected to be so fast.")] = None,
    psnr: Annotated[float | None, typer.Option(help="The fewest deep steps with so many dB in the mean.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a run; generate or the pipeline takes it.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Runs that weights are fitted to.")] = 6,
    trials: Annotated[int, typer.Option(min=1, help="Other runs that choose among schedules.")] = 6,
    checks: Annotated[int, typer.Option(min=1, help="Other runs that tell what to expect.")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Schedules that are kept at once.")] = 6,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it, as Tuned.load reads it.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the trade-off into this file, as SVG.")] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Search the deep steps for your model, and fit what stands in on the others.

    Give one aim: --deep, --speedup or --psnr.
    """

    def work() -> Answer:
        if not is_factory(target):
            raise Mistake(f"tune samples with a function of yours, module:factory, which returns: {FORMS}")
        workload = made(target)
        if not isinstance(workload, Workload):
            raise Mistake(f"{target} gives one call of a model, and tune samples: {FORMS}")
        for path in (output, plot):
            if path is not None and not path.parent.is_dir():
                raise Mistake(f"there is no folder {path.parent}: make it first")
        generate = with_steps(workload, steps)
        aims = {"deep": deep, "speedup": speedup, "psnr": psnr}
        numbers = {"samples": samples, "trials": trials, "checks": checks, "width": width}
        try:
            found = find(workload.subject, generate, **aims, **numbers)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise Mistake(str(error)) from error
        written = [str(path) for path in (output and found.save(output), plot and found.plot(plot)) if path]
        data = {name: value for name, value in asdict(found).items() if name != "config"}
        told = "".join(f"\nwritten    {path}" for path in written)
        return Answer({**data, "config": found.config.brief(), "written": written}, f"{found}{told}")

    tell(work, json, debug)
