"""docs/review.md has the rules of the package; the rules file has a meaning for each threshold."""

from __future__ import annotations

import re
import tomllib

from mcframe.cli.app import all_commands
from mcframe.review.apply_rules import RULES
from mcframe.review.rules import SEVERITIES, TESTS, shipped
from tests.support.rules_table import PAGE, entries

TABLES = tomllib.loads(shipped())


def test_the_table_has_every_threshold() -> None:
    listed = {(rule, key) for rule, key, _, _ in entries() if key}
    assert listed == {(rule, key) for rule, table in TABLES.items() for key in table}
    # Two rules need a reference or a finished evaluation, and have nothing to set; each has a description.
    assert all(
        meaning
        for rule, key, _, meaning in entries()
        if key not in ("enabled", "severity", "") or (not key and rule != TESTS)
    )


def test_every_rule_has_a_table_and_every_table_a_rule() -> None:
    assert {*RULES, TESTS} == set(TABLES)
    for rule in RULES:
        assert TABLES[rule]["enabled"] is True
        assert TABLES[rule]["severity"] in SEVERITIES


def test_the_examples_name_options_that_exist() -> None:
    commands, page = all_commands(), PAGE.read_text("utf-8")
    for name in ("review", "compare"):
        known = {option for parameter in commands[name].params for option in parameter.opts}
        for line in re.findall(rf"^mcframe {name} .*$", page, re.M):
            assert set(re.findall(r"--[\w-]+", line)) <= known, (name, line)
