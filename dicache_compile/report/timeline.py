"""The part of a page about one generation: its streams, step by step."""

from __future__ import annotations

from .amounts import TIMES, counted, milliseconds, number, percent
from .markup import Markup, folded, join, table, tag
from .svg import axis, decisions, error_scale, errors, gammas, scale, time_scale, times
from .tracks import DEEP, Course, Mark, Past, Track

_ON_HOST = "Time of the call, by the host's clock: until it returned. What Dynamo does before is not in it."
_GAP = (
    "Time between calls, by the host's clock: from the begin of this call to that of the model's next one, with the "
    "scheduler's work. The host may run ahead of the device, so this is no measurement of the device."
)


def generation(one: Past, on_host: bool, is_newest: bool) -> Markup:
    """A generation that can be folded; the newest one is open."""
    deep = one.count(0, *DEEP)
    line = [tag("span", "Newest generation" if is_newest else f"Generation {one.number}", class_="name")]
    line.append(tag("span", f"{deep} of {one.steps} deep", class_="quiet"))
    strips = [decisions(course.tracks[0].marks, "strip small") for course in one.courses[:2] if course.tracks]
    line.append(tag("span", *strips, class_="strips"))
    body = [_course(course, on_host) for course in one.courses]
    config = tag("p", "Config: ", tag("code", one.config), class_="quiet")
    return tag("details", tag("summary", *line), *body, config, class_="generation", open=is_newest)


def legend() -> Markup:
    """What the colours are."""
    said = (
        ("deep", "deep, by its error"),
        ("forced", "deep, by a rule: warm-up, schedule, too many reused in a row"),
        ("reused", "reused"),
    )
    return tag("ul", *(tag("li", tag("i", class_=f"key {kind}"), text) for kind, text in said), class_="legend")


def _course(course: Course, on_host: bool) -> Markup:
    panels: list[Markup] = []
    for track in course.tracks:
        if track.rules > 1:
            decides = f", on {track.decides}" if track.decides else ""
            panels.append(tag("p", f"Rule {track.rule}{decides}", class_="rule"))
        panels += _panels(track)
    first = course.tracks[0].marks if course.tracks else ()
    timed = times(first, course.times)
    if timed is not None:
        drawing, top, above = timed
        name = "time of the call" if on_host else "time between calls (host)"
        panels.append(_panel(name, drawing, time_scale(top), _beyond(above, "longer")))
    panels.append(axis([step.index for step in course.steps]))
    cursor = tag("div", class_="cursor", hidden=True)
    plot = tag(
        "div", *panels, cursor, class_="plot", tabindex="0", role="slider", aria_valuemin="0",
        aria_valuemax=str(len(course.steps) - 1), aria_valuenow="0", aria_orientation="horizontal",
        aria_label=f"Steps of stream {course.name}: the arrow keys go from step to step",
    )  # fmt: skip
    hint = "Point at a step, or use the arrow keys, to read its numbers."
    return tag(
        "figure",
        tag("figcaption", tag("h3", "Stream ", tag("code", course.name)), tag("p", _told(course), class_="quiet")),
        plot,
        tag("p", hint, class_="readout", aria_live="polite"),
        folded("The numbers", _numbers(course), tag("p", _ON_HOST if on_host else _GAP, class_="quiet")),
        class_="course",
    )


def _told(course: Course) -> str:
    """What a drawing shows, in words."""
    steps = len(course.steps)
    told = []
    for track in course.tracks:
        whose = f"Rule {track.rule}: " if track.rules > 1 else ""
        deep = track.count(*DEEP)
        told.append(f"{whose}{deep} of {counted(steps, 'step')} ran deep ({percent(deep / steps)}): {_reasons(track)}.")
    deep_time, reused_time = course.median(*DEEP), course.median("reused")
    if deep_time is not None and reused_time is not None:
        told.append(f"Median time: {milliseconds(deep_time)} a deep step, {milliseconds(reused_time)} a reused one.")
    return " ".join(told)


def _reasons(track: Track) -> str:
    limit = f"{track.count('limited')} after {track.most} reused in a row" if track.count("limited") else ""
    forced = f"{track.count('forced')} by a rule such as the warm-up" if track.count("forced") else ""
    by_error = f"{track.count('deep')} by the error" if track.count("deep") else ""
    return ", ".join(filter(None, (forced, limit, by_error))) or "none"


def _panels(track: Track) -> list[Markup]:
    found = [_panel("decision", decisions(track.marks), scale())]
    if any(mark.error is not None or mark.is_nan for mark in track.marks):
        drawing, top, above = errors(track)
        name = "error: column = what is compared, tick = of the step alone"
        if all(mark.error == mark.accumulated for mark in track.marks):
            name = "error of each step"
        limit = () if track.threshold is None else (" against the threshold ", tag("b", number(track.threshold)))
        words = error_scale(top, track.threshold)
        found.append(_panel(join((name, *limit)), drawing, words, _beyond(above, "larger"), _lost(track)))
    pins = gammas(track)
    if pins is not None:
        drawing, low, high = pins
        ends = scale((0.0, number(low, 3), ""), (1.0, number(high, 3), ""))
        found.append(_panel("gamma of each estimate", drawing, ends))
    return found


def _beyond(is_so: bool, how: str) -> str:
    return f"bars with a cut are {how} than the scale" if is_so else ""


def _lost(track: Track) -> str:
    lost = sum(mark.is_nan for mark in track.marks)
    return f"{TIMES} {counted(lost, 'error')} that {'is' if lost == 1 else 'are'} no number" if lost else ""


def _panel(name: str, drawing: Markup, words: Markup, *notes: str) -> Markup:
    said = (tag("span", note, class_="note") for note in notes if note)
    drawn = tag("div", words, drawing, class_="drawn")
    return tag("div", tag("p", name, *said, class_="label"), drawn, class_="panel")


def _numbers(course: Course) -> Markup:
    several = len(course.tracks) > 1
    heads = ["step", *(["rule"] if several else []), "timestep", "decision", "error", "compared", "gamma", "time"]
    rows = []
    for place, step in enumerate(course.steps):
        for track in course.tracks:
            time = milliseconds(course.times[place]) if track.rule == 1 else ""
            rule = [str(track.rule)] if several else []
            rows.append([str(step.index), *rule, number(step.timestep), *_cells(track.marks[place]), time])
    return table(f"Stream {course.name}, step by step", heads, rows, numbers=range(len(heads) - 4, len(heads)))


def _cells(mark: Mark) -> list[str]:
    error = "NaN" if mark.is_nan else number(mark.error)
    return [mark.why, error, "NaN" if mark.is_nan else number(mark.accumulated), number(mark.gamma)]
