"""The page of `report` in a real browser: it fits, is readable, answers to pointer and keys, and asks nobody."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dicache_compile import report, stream, summary
from dicache_compile.report.svg import HEIGHT, REUSED
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.browser import CHROMIUM, Tab, browser
from tests.models import Mixed, SingleStream
from tests.reports.test_report_page import ODD, TWO_RULES, broken
from tests.reports.test_subjects import Pipe, refused

pytestmark = [
    pytest.mark.shares_traces,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]

# Of every text on the screen: what it says, its colour and the one behind it, as 0 to 255.
COLOURS = """
(() => {
  const colour = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255, 1];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, element = text.parentElement;
    if (text.data.trim() && element.checkVisibility() && !element.closest("script, svg"))
      found.push([text.data.trim().slice(0, 40), colour(getComputedStyle(element).color), behind(element)]);
  }
  return found;
})()
"""
# What sticks out of the window, but for what stands in a box that scrolls.
OUTSIDE = """
[...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.closest(".scroll > *")
  && one.getBoundingClientRect().width > 0
  && (one.getBoundingClientRect().right > innerWidth + 1 || one.getBoundingClientRect().left < -1))
  .map((one) => one.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of models in every state."""
    two_rules = compiled(several := models.make(SingleStream), rules=TWO_RULES)
    odd = compiled(mixed := models.make(Mixed), threshold=10.0)
    for step in range(STEPS):
        for name in ("cond", "uncond"):
            with stream(name), torch.no_grad():
                two_rules(*models.inputs(several, step, STEPS))
    with stream(ODD + "-" * 200):
        generate(odd, mixed)
        generate(odd, mixed, steps=300)
    why = refused()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generate(why, why._orig_mod, steps=2)
    pipe = Pipe(
        transformer=two_rules,
        transformer_2=odd,
        refused=why,
        uncalled=compiled(models.make(SingleStream, seed=3)),
        broken=broken({4: float("nan")}),
    )
    return report(pipe, tmp_path_factory.mktemp("page") / "page.html")


def unfold(tab: Tab) -> None:
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_fits_its_window_and_nothing_is_wrong_with_it(tab: Tab, page: Path, width: int, dark: bool) -> None:
    tab.open(page, width=width, dark=dark)
    for look in (lambda: None, lambda: unfold(tab)):
        look()
        assert tab.run("innerWidth") == width
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run(OUTSIDE) == []
    assert tab.run("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    assert [one["request"]["url"] for one in tab.told("Network.requestWillBeSent")] == [page.as_uri()]
    for trouble in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
        assert tab.told(trouble) == []


def luminance(colour: list[float]) -> float:
    """Relative, as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(tab: Tab, page: Path, dark: bool) -> None:
    """By 4.5 to 1, which WCAG 2.2 asks for."""
    tab.open(page, dark=dark)
    unfold(tab)
    texts = tab.run(COLOURS)
    assert len(texts) > 500
    for text, colour, behind in texts:
        assert contrast(colour, behind) >= 4.5, text


DRAWN = """
[...document.querySelectorAll(".key")].map((one) => {
  const style = getComputedStyle(one), card = getComputedStyle(document.querySelector(".generation"));
  const own = one.classList.contains("stood-in") ? style.borderTopColor : style.backgroundColor;
  return [one.className, ...[own, card.backgroundColor].map((text) => text.match(/[\\d.]+/g).map(Number))];
})
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_colour_of_the_drawings_stands_out_from_what_is_behind_it(tab: Tab, page: Path, dark: bool) -> None:
    """By 3 to 1, which WCAG 2.2 asks for."""
    tab.open(page, dark=dark)
    drawn = tab.run(DRAWN)
    kinds = {"deep", "forced", "reused", "always", "site", "stood-in"}
    assert {name.removeprefix("key ") for name, _, _ in drawn} == kinds
    for name, colour, behind in drawn:
        assert contrast(colour, behind) >= 3, name


def test_a_step_is_read_out_where_the_pointer_is_and_where_the_keys_go(tab: Tab, page: Path) -> None:
    tab.open(page)
    read = "document.querySelector('.readout').textContent"
    assert tab.run(read) == "Point at a step, or use the arrow keys, to read its numbers."
    box = tab.run("(({x, y, width, height}) => [x, y, width, height])"
                  "(document.querySelector('.plot .axis').getBoundingClientRect())")  # fmt: skip
    step = 7
    tab.run(f"scrollTo(0, {box[1]} - 500)")
    tab.point(box[0] + box[2] * (step + 0.5) / STEPS, 500)
    assert tab.run(read).startswith(f"Step {step} · rule 1 · timestep ")
    tab.run("document.querySelector('.plot').focus()")
    tab.press("ArrowLeft")
    assert tab.run(read).startswith(f"Step {step - 1} · ")
    tab.press("End")
    assert tab.run(read).startswith(f"Step {STEPS - 1} · ")
    tab.press("ArrowRight")  # there is none after the last
    assert tab.run("document.querySelector('.plot').getAttribute('aria-valuenow')") == str(STEPS - 1)
    assert tab.run("document.querySelector('.plot').getAttribute('aria-valuetext')") == tab.run(read)


def test_an_older_generation_opens_when_it_is_clicked(tab: Tab, page: Path) -> None:
    tab.open(page)
    shown = "[...document.querySelectorAll('#model-1 .generation figure')].map((one) => one.checkVisibility())"
    assert tab.run(shown) == [True, False]
    tab.run("document.querySelectorAll('#model-1 .generation > summary')[1].click()")
    assert tab.run(shown) == [True, True]


def test_a_name_runs_nothing(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.run("window.hacked === undefined")
    assert ODD in tab.run("document.querySelector('#model-1 h3').textContent")
    # And if it could, the page's own policy would not let it.
    tab.run("{ const code = document.createElement('script'); code.textContent = 'window.hacked = true';"
            " document.body.append(code); }")  # fmt: skip
    assert tab.run("window.hacked === undefined")


BARS = """
Object.fromEntries([...document.querySelectorAll("svg.strip path")].map((one) => [
  one.getAttribute("class"),
  [one.getAttribute("d").match(/M/g).length, getComputedStyle(one).fill, one.getBoundingClientRect().height],
]))
"""


def test_there_is_a_bar_for_each_step_in_the_colour_and_height_of_its_decision(tab: Tab, tmp_path: Path) -> None:
    call = compiled(model := models.make(SingleStream), threshold=10.0)
    generate(call, model)
    tab.open(report(call, tmp_path / "page.html"))
    bars, steps = tab.run(BARS), summary(call).generations[0].streams["0"]
    deep = {
        "forced": sum(step.forced for step in steps),
        "limited": sum(step.deep and not step.forced for step in steps),
    }
    expected = {**deep, "reused": sum(not step.deep for step in steps)}
    assert {kind: count for kind, (count, _, _) in bars.items()} == expected
    assert bars["forced"][1:] == bars["limited"][1:]
    assert bars["reused"][1] != bars["forced"][1]
    assert bars["reused"][2] == pytest.approx(REUSED / HEIGHT * bars["forced"][2], rel=0.01)
