"""Generated pages and tables are up to date."""

from __future__ import annotations

import pytest

from tests.support import conformance_list, hooks_reference, metrics_table, rules_table, settings_page

PAGES = {
    "conformance_list": (conformance_list.PAGE, conformance_list.with_requirements),
    "hooks_reference": (hooks_reference.PAGE, hooks_reference.with_reference),
    "metrics_table": (metrics_table.PAGE, metrics_table.with_table),
    "rules_table": (rules_table.PAGE, rules_table.with_table),
    "settings_page": (settings_page.SETTINGS_PAGE, lambda _: settings_page.settings_page()),
    "settings_page of the catalogue": (settings_page.CATALOGUE_PAGE, settings_page.with_plugins),
}


@pytest.mark.parametrize("generator", PAGES)
def test_a_page_is_up_to_date(generator: str) -> None:
    path, generate = PAGES[generator]
    page = path.read_text("utf-8")
    assert page == generate(page), f"run python tests/support/{generator.split()[0]}.py"
