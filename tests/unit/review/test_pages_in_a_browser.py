"""Pages in a real browser: self-contained, without errors, readable, printable."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mcframe.cli.app import app
from tests.support.chromium import CHROMIUM, Browser
from tests.support.synthetic_runs import CONFIG, healthy, like_the_seed, write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")

STRIP = "focused 1·1·22222·····|····  95 of 128 entries, 7 gists"
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && !e.closest('pre')
    && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
HIDDEN = """[...document.querySelectorAll('.figures td, .figures th, figure')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
PLOTS = """[...document.querySelectorAll('figure svg')].map(e => [e.getBoundingClientRect().width,
    e.getBoundingClientRect().height, e.querySelectorAll('path[d]').length])"""
CONTRAST = """(() => { const lum = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
    const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!c.endsWith(', 0)') && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
    return Math.min(...[...document.querySelectorAll('h1, h2, h3, p, li, td, th, b, a, figcaption, .soft, .meaning,'
        + ' .tag, .strips span, svg text')].map(e => { const style = getComputedStyle(e);
        const [x, y] = [lum(e.closest('svg') ? style.fill : style.color), lum(back(e))].sort((a, b) => b - a);
        return (x + .05) / (y + .05); })); })()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A review with findings and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    reference = write_run(folder / "reference", healthy(1), config={**CONFIG, "gpt.depth": "6"})
    run = write_run(folder / "run10", like_the_seed())
    for arguments in (("review", run, "--against", reference), ("compare", run, reference)):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
    review = run / "review" / "review.html"
    # The synthetic run has no working contexts, so one is inserted.
    with_strip = re.sub(
        r"(<h2>Controller metrics: LOD layout</h2>)", rf'\1<pre class="strips">{STRIP}</pre>', review.read_text()
    )
    review.write_text(with_strip)
    return review, folder / "comparison" / "comparison.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("which", [0, 1], ids=["review", "comparison"])
def test_a_page_is_self_contained_and_readable_in_any_window(pages, browser, which):
    address = pages[which].as_uri()
    browser.window(1600)
    browser.open(address)
    # Requests after the page has been loaded would arrive now.
    browser.value("new Promise(done => setTimeout(done, 300))")
    for width in (400, 1600):
        for scheme in ("light", "dark"):
            browser.window(width, scheme)
            assert browser.value(TOO_WIDE) == []
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert width == 1600 or browser.value(HIDDEN) == []
            assert browser.value(CONTRAST) >= 4.5
            picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
            assert (np.median(picture) > 200) == (scheme == "light")
            plots = browser.value(PLOTS)
            assert len(plots) >= (9 if which == 0 else 6)
            for across, high, drawn in plots:
                assert 300 < across <= width
                assert across * 0.4 < high < across
                assert drawn > 5
    assert [request for request in browser.requests() if not request.startswith("data:")] == [address]
    assert browser.errors() == []


def test_requests_and_errors_are_detected(pages, browser, tmp_path):
    text = pages[0].read_text("utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</main>", '<img src="missing.png"><script>nothing()</script></main>'), "utf-8")
    browser.open(broken.as_uri())
    assert any(request.endswith("missing.png") for request in browser.requests())
    assert any(event["method"] == "Runtime.exceptionThrown" for event in browser.errors())


def test_a_page_prints(pages, browser):
    browser.window(1600, "dark")
    browser.open(pages[0].as_uri())
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    sheets = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 3 <= sheets <= 14
