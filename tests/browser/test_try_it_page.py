"""The try-it page in a real Chromium: type, generate, move the slider, see the picture change."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from deploy import browser
from tests.integration.inference.serving import ROOT, SECONDS, Serving, registry_with_a_version, serving

SCREENSHOT = ROOT / "build" / "try-it.png"
"""Kept after the test, to be looked at."""
MILLISECONDS = 1000 * SECONDS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("browser")
    with registry_with_a_version(folder) as (address, version), serving(address, version) as running:
        yield running


@pytest.fixture(scope="module")
def page(served: Serving) -> Iterator[Page]:
    """The Chromium that `make browser` finds."""
    chromium = browser.installed()
    assert chromium is not None, browser.ADVICE
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(browser.ARGUMENTS))
        opened = started.new_page(viewport={"width": 900, "height": 860})
        opened.set_default_timeout(MILLISECONDS)
        trouble: list[str] = []
        opened.on("pageerror", lambda error: trouble.append(str(error)))
        opened.on("requestfailed", lambda request: trouble.append(f"{request.url}: {request.failure}"))
        opened.on("request", lambda request: None if request.url.startswith((served.url, "data:")) else trouble.append(request.url))
        opened.goto(served.url)
        opened.wait_for_selector("body[data-ready=yes]")
        yield opened
        started.close()
    assert trouble == []


def source(page: Page, which: str) -> str:
    return page.locator(f"#{which}").get_attribute("src") or ""


def distance(one: str, other: str) -> int:
    """The largest difference of two sources' pictures in any pixel and channel, in levels of 255."""
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[1])))).astype(int) for data in (one, other)]
    return int(np.abs(pictures[0] - pictures[1]).max())


def test_a_prompt_is_painted_and_the_slider_changes_one_picture(page: Page, served: Serving) -> None:
    page.fill("#prompt", "a red house and a tree by day")
    page.fill("#seed", "11")
    page.click("#generate")
    expect(page.locator("#status")).to_contain_text(f"by version {served.version[:12]}", timeout=MILLISECONDS)
    base, fused = source(page, "base"), source(page, "fused")  # two requests at a time: their pictures may share forwards
    assert base.startswith("data:image/png;base64,") and distance(base, fused) > 1
    # The slider as a hand moves it, to its largest weight and back to the base model.
    page.locator("#scale").press("End")
    page.wait_for_selector("#fused[data-scale='2']")
    most = source(page, "fused")
    assert min(distance(most, base), distance(most, fused)) > 1 and source(page, "base") == base
    expect(page.locator("#fused-caption")).to_have_text("weight 2.00")
    page.locator("#scale").press("Home")
    page.wait_for_selector("#fused[data-scale='0']")
    # Alone, as here, a picture is bit-identical to the pipeline's; one that shared forwards differs from it by at most one level.
    assert distance(source(page, "fused"), base) <= 1
    moved = "slider => { slider.value = 1; for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind)); }"
    page.locator("#scale").evaluate(moved)
    page.wait_for_selector("#fused[data-scale='1']")
    assert distance(source(page, "fused"), fused) <= 1
    expect(page.locator("#generate")).to_be_enabled()
    page.screenshot(path=SCREENSHOT)
    assert SCREENSHOT.stat().st_size > 10_000


def test_what_goes_wrong_is_said_on_the_page(page: Page) -> None:
    page.fill("#prompt", "moon " * 3000)
    page.click("#generate")
    expect(page.locator("#status.error")).to_contain_text("prompt:", timeout=MILLISECONDS)
    page.fill("#prompt", "a boat on a lake")
    page.click("#dice")
    expect(page.locator("#status:not(.error)")).to_contain_text("Painted in", timeout=MILLISECONDS)
