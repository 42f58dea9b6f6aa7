"""docs/conformance.md holds the clauses and capabilities as they are registered, and its example is one that runs."""

from __future__ import annotations

import re

from mcframe.testing.capabilities import CAPABILITIES
from tests.support.conformance_list import PAGE, with_clauses


def test_the_page_holds_the_generated_list() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_clauses(page), "run python tests/support/conformance_list.py"


def test_the_page_explains_every_capability() -> None:
    page = PAGE.read_text("utf-8")
    found = re.search(r"## What a plug-in declares\n(.*?)\n## ", page, re.S)
    assert found
    named = set(re.findall(r"`(\w+)`", found[1]))
    declared = {name for each in CAPABILITIES.values() for name in re.findall(r"`(\w+)`", each.declared)}
    assert declared - named == set()


def test_the_example_of_the_page_is_a_contract() -> None:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert found
    scope: dict[str, object] = {}
    exec(found[1], scope)
    assert isinstance(scope["TestMine"], type)
