"""Random geometries and focuses for the checks, by hypothesis: the same ones every time, and a bounded number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError

try:
    from hypothesis import HealthCheck, Phase, given, reject, settings
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable
except ModuleNotFoundError as error:
    raise UserError(
        "the conformance kit needs hypothesis, which is not installed",
        remedy="pip install 'mcframe[testing]'",
    ) from error

from mcframe.testing.requirements import NotConforming

EXAMPLES = 10
"""How many examples a check tries by default."""


def for_all(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int = EXAMPLES) -> None:
    """Call `check` with that many examples of `strategy`.

    An example for which the plug-in raises a UserError while it is built is passed over: a plug-in may decline what it
    does not support. Raises what the check raises, for the smallest example that fails; NotConforming where the plug-in
    declines every one.
    """
    declined: list[UserError] = []

    def body(make: Callable[[], Any]) -> None:
        try:
            example = make()
        except UserError as refusal:
            declined.append(refusal)
            reject()
        check(example)

    options = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, print_blob=False,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )  # fmt: skip
    try:
        options(given(strategy)(body))()
    except Unsatisfiable:
        last = f"; the last time: {declined[-1]}" if declined else ""
        raise NotConforming(f"it declines every tree that was tried{last}") from None


@st.composite
def geometries(draw: st.DrawFn) -> ContextTree:
    """Small trees: T need not be a multiple of K, the top level need not fit, slots may be several."""
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


SEEDS = st.integers(0, 2**31)
"""Seeds of random inputs."""
