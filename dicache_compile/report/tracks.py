"""What each rule decided on each step of a generation, and why, ready to be drawn."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..explanation import Explanation
from ..site_rule import SiteRule
from ..summary import Decision, Generation, StepRecord

Kind = Literal["deep", "forced", "limited", "reused", "unasked"]
DEEP: tuple[Kind, ...] = ("deep", "forced", "limited")


@dataclass(frozen=True, slots=True)
class Mark:
    """A rule on one step."""

    # "deep": by its error; "forced": by a rule; "limited": after too many reused ones in a row; "unasked": it lies
    # inside of what another rule reused.
    kind: Kind
    why: str
    error: float | None
    accumulated: float | None
    gamma: float | None
    is_nan: bool = False  # whether the error is no number


@dataclass(frozen=True, slots=True)
class Track:
    """A rule in one generation of one stream."""

    rule: int  # from 1
    rules: int  # how many there are
    decides: str  # on which blocks; "" where that is not known
    threshold: float | None  # None: there is none
    gamma_range: tuple[float, float] | None
    most: int | None  # steps that may be reused in a row
    marks: tuple[Mark, ...]

    def count(self, *kinds: Kind) -> int:
        return sum(mark.kind in kinds for mark in self.marks)


@dataclass(frozen=True, slots=True)
class Course:
    """One stream in one generation."""

    name: str
    steps: Sequence[StepRecord]
    tracks: tuple[Track, ...]
    times: tuple[float | None, ...]  # of steps, in seconds; None where that is not known

    def median(self, *kinds: Kind) -> float | None:
        """Of the times of the steps on which the first rule decided so."""
        return median(times_of(self, *kinds))


@dataclass(frozen=True, slots=True)
class Past:
    """A generation."""

    number: int  # as `summary` counts, from 0
    config: str  # its fields that are not as by default
    courses: tuple[Course, ...]
    work: float | None  # what was done of all operations that the steps have, from 0 to 1

    @property
    def steps(self) -> int:
        """Of all streams."""
        return sum(len(course.steps) for course in self.courses)

    @property
    def rules(self) -> int:
        return max((len(course.tracks) for course in self.courses), default=0)

    def count(self, rule: int, *kinds: Kind) -> int:
        """On how many of the steps a rule, from 0, decided so."""
        return sum(course.tracks[rule].count(*kinds) for course in self.courses if rule < len(course.tracks))


def past(number: int, generation: Generation, told: Explanation | None, on_host: bool) -> Past:
    """A generation of a model that is cut as `told`. `on_host`: whether a call returns when its work is done."""
    rules, joint = generation.config.all_rules(), generation.config.decides_jointly()
    gaps = {} if on_host else _gaps(generation.streams)
    courses = []
    for name, steps in generation.streams.items():
        columns = list(zip(*(step.decisions for step in steps), strict=True))
        tracks = []
        for place, (rule, decisions) in enumerate(zip(rules, columns, strict=False)):
            decides = told.rules[place].skips if told is not None and place < len(told.rules) else ""
            tracks.append(_track(rule, place, len(columns), decides, decisions, joint))
        times = tuple(step.seconds if on_host else gaps.get(step.began) for step in steps)
        courses.append(Course(name, steps, tuple(tracks), times))
    return Past(number, generation.config.brief(), tuple(courses), _work(courses, told))


def times_of(course: Course, *kinds: Kind) -> list[float]:
    marks = course.tracks[0].marks if course.tracks else ()
    return [time for mark, time in zip(marks, course.times, strict=False) if mark.kind in kinds and time is not None]


def median(times: Iterable[float]) -> float | None:
    found = list(times)
    return statistics.median(found) if found else None


def _gaps(streams: Mapping[str, Sequence[StepRecord]]) -> dict[float | None, float]:
    """From the begin of each call, of whatever stream, to that of the next one."""
    began = sorted(step.began for steps in streams.values() for step in steps if step.began is not None)
    return {now: after - now for now, after in pairwise(began)}


def _work(courses: Sequence[Course], told: Explanation | None) -> float | None:
    if told is None or not any(part.share for part in told.parts):
        return None
    # A rule inside of another is not asked where that one reuses, so no operation is taken off twice.
    shares = [sum(part.by_rule[rule] for part in told.parts) for rule in range(len(told.rules))]
    steps = sum(len(course.steps) for course in courses)
    saved = sum(
        share * track.count("reused") for course in courses for track, share in zip(course.tracks, shares, strict=False)
    )
    return 1 - saved / steps if steps else None


def _track(
    rule: SiteRule, place: int, rules: int, decides: str, decisions: Sequence[Decision | None], joint: bool
) -> Track:
    threshold, in_a_row, most = _threshold(rule), 0, rule.max_consecutive_skips
    marks = []
    for decision in decisions:
        marks.append(_mark(rule, threshold, decision, in_a_row, joint))
        if marks[-1].kind != "unasked":
            in_a_row = in_a_row + 1 if marks[-1].kind == "reused" else 0
    return Track(
        rule=place + 1,
        rules=rules,
        decides=decides,
        threshold=threshold,
        gamma_range=rule.gamma_range if rule.estimator is None else None,
        most=most if isinstance(most, int) else None,
        marks=tuple(marks),
    )


def _threshold(rule: SiteRule) -> float | None:
    if rule.schedule is not None:
        return None
    if rule.gate is None:
        return rule.threshold
    own = getattr(rule.gate, "threshold", None)
    return float(own) if isinstance(own, (int, float)) and not isinstance(own, bool) else None


def _mark(rule: SiteRule, threshold: float | None, decision: Decision | None, in_a_row: int, joint: bool) -> Mark:
    if decision is None:
        return Mark("unasked", "not asked: it lies inside of what another rule reused", None, None, None)
    numbers = (decision.error, decision.accumulated, decision.gamma)
    if not decision.deep:
        return Mark("reused", "reused", *numbers)
    if decision.forced:
        why = "the schedule says so" if rule.schedule is not None else "it had to, by a rule such as the warm-up"
        return Mark("forced", f"deep: {why}", *numbers)
    compared = decision.accumulated
    if compared is None and rule.schedule is None:
        return Mark("deep", "deep: the error is not a number", *numbers, is_nan=True)
    if not _is_beyond(rule, threshold, compared) and rule.schedule is None and in_a_row == rule.max_consecutive_skips:
        return Mark("limited", f"deep: {in_a_row} steps in a row had been reused", *numbers)
    return Mark("deep", f"deep: {_why_deep(rule, threshold, compared, joint)}", *numbers)


def _is_beyond(rule: SiteRule, threshold: float | None, compared: float | None) -> bool:
    if threshold is None or compared is None:
        return False
    return compared > threshold if rule.gate is None and rule.comparison == "<=" else compared >= threshold


def _why_deep(rule: SiteRule, threshold: float | None, compared: float | None, joint: bool) -> str:
    if _is_beyond(rule, threshold, compared):
        return "the error reached the threshold"
    if joint:
        return "as another stream of its request"
    return "the schedule says so" if rule.schedule is not None else "the gate said so"
