"""Deterministic property checks: a bounded number of random examples from hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.testing.assertions import NotConforming

try:
    from hypothesis import HealthCheck, Phase, given, reject, settings
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable
except ModuleNotFoundError as error:
    raise UserError(
        "conformance kit: expected the package hypothesis, which is not installed",
        remedy="pip install 'mcframe[testing]'",
    ) from error

SEEDS = st.integers(0, 2**31)
"""Seeds of random inputs."""

PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
"""The phases of hypothesis. Without the last one, the example of a failure is not made smaller."""


def for_all(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int) -> None:
    """Call `check` with examples of `strategy`, the same ones in every session.

    Args:
        strategy: Functions that build an example. If one raises UserError, the plug-in declines the example and the
            next one is drawn.
        check: Raises an exception for an example that fails.
        examples: The number of examples.

    Raises:
        Exception: The exception of `check` for the smallest example that fails.
        NotConforming: The plug-in declines every example.
    """
    declined: list[UserError] = []

    def body(build: Callable[[], Any]) -> None:
        try:
            example = build()
        except UserError as refusal:
            declined.append(refusal)
            reject()
        check(example)

    options = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, print_blob=False,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, phases=PHASES,
    )  # fmt: skip
    try:
        options(given(strategy)(body))()
    except Unsatisfiable:
        last = f"; the last time: {declined[-1]}" if declined else ""
        raise NotConforming(f"it declines every example{last}") from None


@st.composite
def trees(draw: st.DrawFn) -> ContextTree:
    """Draw small trees: T need not be a multiple of K, the top level need not fit, slots may be several."""
    block_size = draw(st.integers(2, 5))
    window = draw(st.integers(block_size, 60))
    return ContextTree(
        window=window,
        block_size=block_size,
        levels=draw(st.integers(1, 2)),
        slots=draw(st.integers(1, block_size - 1)),
        tail=draw(st.one_of(st.integers(0, min(window, 8)), st.integers(0, window))),
        sink=draw(st.integers(0, 2)),
    )
