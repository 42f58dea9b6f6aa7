"""The thresholds of the rules: those of the package, overridden by a file of the user's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcframe.errors import Location, UserError
from mcframe.registry.plugins import did_you_mean

TESTS = "tests"
SEVERITIES = ("high", "medium", "low")
_SHARES = {"alpha", "level", "late", "share", "drop", "lr", "reaches"}


@dataclass(frozen=True)
class Rules:
    """Tables of thresholds by the name of their rule. source says where they come from."""

    tables: Mapping[str, Mapping[str, Any]]
    source: str

    def enabled(self, rule: str) -> bool:
        """Whether a rule is asked."""
        return bool(self.tables[rule]["enabled"])

    def severity(self, rule: str) -> str:
        """How grave its finding is."""
        return str(self.tables[rule]["severity"])

    def number(self, rule: str, key: str) -> float:
        """A threshold."""
        return float(self.tables[rule][key])

    @property
    def alpha(self) -> float:
        """Probability of a change called out of noise, for one test."""
        return self.number(TESTS, "alpha")

    @property
    def level(self) -> float:
        """Level of intervals."""
        return self.number(TESTS, "level")

    @property
    def late(self) -> float:
        """The last share of a run that counts for what it has come to."""
        return self.number(TESTS, "late")


def shipped() -> str:
    """The text of the rules that come with mcframe."""
    return files("mcframe.review").joinpath("rules.toml").read_text("utf-8")


def read_rules(file: Path | None = None) -> Rules:
    """The package's rules, with what `file` sets instead. Raises UserError for what is no rule or no threshold."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(shipped())
    if file is None:
        return Rules(tables, "the rules that come with mcframe")
    try:
        own = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="give --rules a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"this is no TOML: {error}", remedy="see docs/review.md", place=Location(file)) from error
    for rule, table in own.items():
        if rule not in tables or not isinstance(table, dict):
            raise UserError(
                f"there is no rule {rule}{did_you_mean(rule, tables)}",
                remedy="the rules are in docs/review.md", place=Location(file),
            )  # fmt: skip
        for key, value in table.items():
            tables[rule][key] = _checked(file, rule, key, value, tables[rule])
    return Rules(tables, str(file))


def _checked(file: Path, rule: str, key: str, value: Any, known: Mapping[str, Any]) -> Any:
    if key not in known:
        raise UserError(
            f"{rule} has no threshold {key}{did_you_mean(key, known)}",
            remedy=f"it has {', '.join(known)}", place=Location(file),
        )  # fmt: skip
    if key == "enabled":
        fits, wanted = isinstance(value, bool), "true or false"
    elif key == "severity":
        fits, wanted = value in SEVERITIES, f"one of {', '.join(SEVERITIES)}"
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        share = key in _SHARES
        fits = number and (0 < value < 1 if share else value >= 0)
        fits = fits or (number and rule != TESTS and share and value == 1)
        wanted = "a number between 0 and 1" if share else "a number from 0 on"
    if not fits:
        raise UserError(f"{rule}.{key} is {value!r}; it must be {wanted}", remedy="correct it", place=Location(file))
    return value
