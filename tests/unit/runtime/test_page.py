"""The page of `mcframe serve` in a real browser."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.support.chromium import CHROMIUM, Browser
from tests.support.serving import NAME, serving

TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 80))"""


def test_the_page_makes_no_request_to_others(tmp_path):
    with serving(tmp_path) as (address, _):
        answer = httpx.get(address)
    assert "https://" not in answer.text
    assert "http://" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_a_text_is_generated_and_the_context_shown(tmp_path):
    with serving(tmp_path / "sessions") as (address, _), Browser(tmp_path / "profile") as browser:
        browser.window(400)
        browser.open(address)
        wait(browser, f"document.getElementById('model').textContent === '{NAME}'")
        for width, scheme, kind in ((400, "light", "text"), (1600, "dark", "chat")):
            browser.window(width, scheme)
            before = browser.value("document.getElementById('text').textContent.length")
            browser.value(
                f"""kind.value = '{kind}'; document.getElementById('prompt').value = 'ab '.repeat(60);
                tokens.value = 60; temperature.value = 0; form.requestSubmit()"""
            )
            wait(browser, f"!send.disabled && document.getElementById('text').textContent.length > {before} + 200")
            assert browser.value("error.textContent") == ""
            assert browser.value("getComputedStyle(keyed).display") == "none"
            assert browser.value("strip.children.length") > 3
            assert "tokens" in browser.value("figures.textContent")
            assert browser.value("log.children.length") > 1
            assert browser.value(TOO_WIDE) == []
        assert "page" in browser.value("[...names.children].map(e => e.value)")
        assert all(each.startswith(address) for each in browser.requests())
        assert browser.errors() == []


def wait(browser, condition):
    deadline = time.monotonic() + 20
    while not browser.value(condition):
        assert time.monotonic() < deadline, (condition, browser.errors())
        time.sleep(0.05)
