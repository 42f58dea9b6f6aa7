"""Bounds of settings, stated in their types: `layers: Size = 2`.

`mcframe check` and `mcframe run` compare every binding of a gin file with the type of its parameter, those of
third-party plug-ins included. A plug-in may use these types, or state bounds of its own with `pydantic.Field`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The fraction of an average that stays in each step."""
Temperature = Annotated[float, Field(ge=1e-3)]
"""A divisor of logits. Below the bound the quotient overflows."""

AnyNumber = Annotated[float, "any number"]
"""States that a setting has no bounds, such as a threshold."""

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=65_536)]
"""The number or the width of layers, heads and the like."""
SizeOrZero = Annotated[int, Field(ge=0, le=65_536)]
"""A number of layers that may be 0."""
Repeats = Annotated[int, Field(ge=1, le=1_000_000)]
"""A number of rounds, draws or tokens that are computed one after the other."""
Seed = Annotated[int, Field(ge=0)]

__all__ = [
    "AnyNumber", "Count", "Decay", "Fraction", "NonNegative", "NonNegativeInt", "OpenFraction", "Positive",
    "PositiveFraction", "Repeats", "Seed", "Size", "SizeOrZero", "Temperature",
]  # fmt: skip
