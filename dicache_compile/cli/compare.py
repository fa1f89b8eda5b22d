"""`dicache compare`: a user's own sampling, plain against cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isinf
from statistics import mean, median
from typing import Annotated, Any

import torch
import typer
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .answer import Answer, AsJson, Debug, Mistake, errors, tell
from .factory import FORMS, Workload, is_factory, made, with_steps
from .settings import Fields, Preset, asked

Target = Annotated[
    str,
    typer.Argument(
        help="module:factory, a function of yours that returns (model or pipe, generate), where generate(seed) samples "
        "one result, or (pipe, kwargs), a diffusers pipeline and what it is called with."
    ),
]


@dataclass(frozen=True, slots=True)
class Total:
    """Of all rounds."""

    plain_seconds: float  # median
    cached_seconds: float  # median
    speed_up: float  # of pairs in the same round; median
    deep: float  # mean
    steps: float  # mean
    psnr_mean: float
    psnr_worst: float
    ssim_mean: float | None
    ssim_worst: float | None


def compare(
    target: Target,
    config: Fields = [],  # noqa: B006 - typer copies it
    preset: Preset = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a run; generate or the pipeline takes it.")] = None,
    seeds: Annotated[str, typer.Option(help="Each is one round: '0-4', or '3,7,8'.")] = "0-4",
    eager: Annotated[
        bool, typer.Option("--eager", help="Compile neither: no compiler is needed, times mean less.")
    ] = False,
    min_speed_up: Annotated[float | None, typer.Option(help="Exit with 1 if the median is below.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Exit with 1 if the worst one is below, in dB.")] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure what the cache gains on your model, and how much it changes the results.

    Plain is torch.compile's default. After a first run of each that compiles, both run each seed in turn.
    PSNR and SSIM compare the two results of a seed. Exits with 1 where nothing is cached, or a bar is missed.
    """

    def work() -> Answer:
        numbers = _seeds(seeds)
        found = asked(config, preset)
        if not is_factory(target):
            raise Mistake(f"compare samples with a function of yours, module:factory, which returns: {FORMS}")
        try:
            from .rounds import NotCached, both, measure
        except ModuleNotFoundError as error:
            raise Mistake(f"compare needs {error.name}: pip install 'dicache-compile[cli]'") from error
        workload = made(target)
        if not isinstance(workload, Workload):
            raise Mistake(f"{target} gives one call of a model, and compare samples: {FORMS}")
        generate = with_steps(workload, steps)
        about = {"target": target, "torch": torch.__version__}
        try:
            with both(workload.subject, found, not eager) as each, _bar() as bar:
                about |= {"device": _device(each.models), "config": each.config.brief()}
                task = bar.add_task("sampling", total=2 * (1 + len(numbers)))
                measured = measure(each, generate, numbers, lambda: bar.advance(task))
        except NotCached as error:
            return Answer({**about, "cached": False, "reason": str(error)}, f"not cached: {error}", good=False)
        total = _total(measured.rounds)
        missed = _missed(total, min_speed_up, min_psnr)
        data = {**about, "cached": True, "eager": eager, **asdict(measured), "total": total, "missed": missed}
        shown = Group(_head(about, eager), "", _table(measured.rounds, total), *_unsteady(measured.again_psnr), *missed)
        return Answer(data, shown, good=not missed)

    tell(work, json, debug)


def _seeds(text: str) -> list[int]:
    """[0, 1, 2, 7] of "0-2,7". Raises Mistake."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise Mistake(f"--seeds {text}: expected whole numbers, as in 0-4 or 3,7,8")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise Mistake(f"--seeds {text}: there is none in it")
    return found


def _total(done: Sequence[Any]) -> Total:
    similar = [one.ssim for one in done if one.ssim is not None]
    return Total(
        plain_seconds=median(one.plain_seconds for one in done),
        cached_seconds=median(one.cached_seconds for one in done),
        speed_up=median(one.plain_seconds / one.cached_seconds for one in done),
        deep=mean(one.deep for one in done),
        steps=mean(one.steps for one in done),
        psnr_mean=mean(one.psnr for one in done),
        psnr_worst=min(one.psnr for one in done),
        ssim_mean=mean(similar) if similar else None,
        ssim_worst=min(similar, default=None),
    )


def _missed(total: Total, speed_up: float | None, psnr: float | None) -> list[str]:
    """The bars that were asked for and are not reached."""
    missed = []
    if speed_up is not None and total.speed_up < speed_up:
        missed.append(f"speed-up {total.speed_up:.2f}x is below {speed_up}x")
    if psnr is not None and total.psnr_worst < psnr:
        missed.append(f"PSNR {total.psnr_worst:.1f} dB at worst is below {psnr} dB")
    return missed


def _unsteady(again: float) -> list[str]:
    if isinf(again):
        return []
    return [
        f"Two plain runs of one seed differ, too: {again:.1f} dB. If that is less than some 60 dB, have generate(seed) "
        "draw all of its random numbers from the seed."
    ]


def _device(models: Sequence[torch.nn.Module]) -> str:
    devices = {str(weight.device) for model in models for weight in model.parameters()}
    names = (torch.cuda.get_device_name(one) if one.startswith("cuda") else one for one in sorted(devices))
    return ", ".join(names)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors(), transient=True)


def _head(about: dict[str, str], eager: bool) -> str:
    plain = "the model, uncompiled" if eager else "torch.compile(model)"
    return f"config   {about['config']}\nplain    {plain}\nmachine  {about['device']}, torch {about['torch']}"


def _table(done: Sequence[Any], total: Total) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for heading in ("seed", "plain, s", "cached, s", "speed-up", "deep steps", "PSNR, dB", "SSIM"):
        table.add_column(heading, justify="right")
    for one in done:
        table.add_row(
            str(one.seed), _seconds(one.plain_seconds), _seconds(one.cached_seconds),
            f"{one.plain_seconds / one.cached_seconds:.2f}x", f"{one.deep:.1f} of {one.steps:.0f}", f"{one.psnr:.1f}",
            _similar(one.ssim),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "median", _seconds(total.plain_seconds), _seconds(total.cached_seconds), f"{total.speed_up:.2f}x", "", "", ""
    )
    table.add_row("mean", "", "", "", f"{total.deep:.1f} of {total.steps:.0f}", f"{total.psnr_mean:.1f}",
                  _similar(total.ssim_mean))  # fmt: skip
    table.add_row("worst", "", "", "", "", f"{total.psnr_worst:.1f}", _similar(total.ssim_worst))
    return table


def _similar(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
