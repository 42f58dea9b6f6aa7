"""docs/conformance.md explains every capability, and its example runs."""

from __future__ import annotations

import re

from mcframe.testing import all_requirements
from tests.support.conformance_list import PAGE


def test_page_explains_every_capability() -> None:
    section = re.search(r"## Declarations of a plug-in\n(.*?)\n## ", PAGE.read_text("utf-8"), re.S)
    assert section
    needs = [each.needs.declared for each in all_requirements().values() if each.needs]
    declared = {name for each in needs for name in re.findall(r"`(\w+)`", each)}
    assert declared <= set(re.findall(r"`(\w+)`", section[1]))


def test_example_of_the_page_is_a_suite() -> None:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert found
    scope: dict[str, object] = {}
    exec(found[1], scope)
    assert isinstance(scope["TestMine"], type)
