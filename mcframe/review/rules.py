"""Thresholds of the rules: those of the package, overridden by the user's file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcframe.errors import Location, UserError, did_you_mean

TESTS = "tests"
SEVERITIES = ("high", "medium", "low")
_FRACTIONS = {"alpha", "level", "late", "fraction", "drop", "lr", "reaches"}


@dataclass(frozen=True)
class Rules:
    """Thresholds by the name of their rule, and the source of them."""

    tables: Mapping[str, Mapping[str, Any]]
    source: str

    def enabled(self, rule: str) -> bool:
        """Return whether a rule is applied."""
        return bool(self.tables[rule]["enabled"])

    def number(self, rule: str, key: str) -> float:
        """Return a threshold."""
        return float(self.tables[rule][key])

    @property
    def alpha(self) -> float:
        """Probability of a change found in noise, for one test."""
        return self.number(TESTS, "alpha")

    @property
    def level(self) -> float:
        """Level of intervals."""
        return self.number(TESTS, "level")

    @property
    def late(self) -> float:
        """The last fraction of a run, from which its results are taken."""
        return self.number(TESTS, "late")


def shipped() -> str:
    """Return the text of the package's rules."""
    return files("mcframe.review").joinpath("rules.toml").read_text("utf-8")


def read_rules(file: Path | None = None) -> Rules:
    """Return the package's rules, overridden by those of `file`.

    Raises:
        UserError: the file cannot be read, or has an unknown rule, an unknown threshold or a wrong value.
    """
    tables: dict[str, dict[str, Any]] = tomllib.loads(shipped())
    if file is None:
        return Rules(tables, "the rules of mcframe")
    try:
        own = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="Pass a TOML file to --rules.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"expected TOML: {error}", remedy="See docs/review.md.", location=Location(file)) from error
    for rule, table in own.items():
        if rule not in tables or not isinstance(table, dict):
            raise UserError(
                f"unknown rule {rule}{did_you_mean(rule, tables)}",
                remedy="See docs/review.md for the rules.", location=Location(file),
            )  # fmt: skip
        for key, value in table.items():
            tables[rule][key] = _checked(file, rule, key, value, tables[rule])
    return Rules(tables, str(file))


def _checked(file: Path, rule: str, key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """Return the value of a threshold if it is valid."""
    if key not in known:
        raise UserError(
            f"unknown threshold {rule}.{key}{did_you_mean(key, known)}",
            remedy=f"Set one of {', '.join(known)}.", location=Location(file),
        )  # fmt: skip
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "enabled":
        valid, expected = isinstance(value, bool), "true or false"
    elif key == "severity":
        valid, expected = value in SEVERITIES, f"one of {', '.join(SEVERITIES)}"
    elif key in _FRACTIONS:
        valid, expected = number and (0 < value < 1 or (value == 1 and rule != TESTS)), "a number between 0 and 1"
    else:
        valid, expected = number and value >= 0, "a number from 0 on"
    if not valid:
        raise UserError(
            f"{rule}.{key}: expected {expected}, got {value!r}",
            remedy=f"Set {rule}.{key} to {expected}.", location=Location(file),
        )  # fmt: skip
    return value
