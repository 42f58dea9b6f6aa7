"""Requirements of positions. Rows, random states and the device are the concern of requirements M1 to M3."""

from __future__ import annotations

import torch

from mcframe.context.working_context import build_context
from mcframe.testing.assertions import expect
from mcframe.testing.calls import Example, PluginCall, calls, make_call
from mcframe.testing.model_parts import SMALL
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import PURE, requirement


@requirement(
    "Q1", "Cosine and sine are float32 [R, 1 or heads, L, width / 2] and lengthen no vector", "positions",
    over=calls, examples=10, after=("P6",),
)  # fmt: skip
def q1_form(call: PluginCall) -> None:
    """On contexts of every kind."""
    factors, context = call.part(call.context), call.context
    expected = [context.token.shape[0], context.length, call.width // 4]
    for factor in factors:
        heads = factor.shape[1] if factor.dim() == 4 else 0
        fits = [*factor.shape[:1], *factor.shape[2:]] == expected and heads in (1, 2)
        expect(fits, f"{context.length} entries, 2 heads: a factor has the shape {list(factor.shape)}")
        expect(factor.dtype == torch.float32, f"expected float32, got {factor.dtype}")
    cosine, sine = factors
    longest = float((cosine**2 + sine**2).max())
    expect(longest < 1 + 1e-4, f"a rotation lengthens vectors {longest**0.5:.3f} times")


@requirement("Q2", "Later entries do not change the rotation of an entry", "positions", after=("Q1", *PURE))
def q2_causal(plugin: PluginUnderTest) -> None:
    """Compressing a later block keeps the rotations of all entries before it."""
    part = make_call(plugin, Example(SMALL)).part
    focus = torch.zeros(1, SMALL.blocks, dtype=torch.long)
    focus[0, 1] = 1
    later = focus.clone()
    later[0, 8] = 1
    before = 8 * SMALL.block_size - SMALL.saving(1)  # entries of the first eight blocks
    one, other = (torch.stack(part(build_context(each, SMALL)))[..., :before, :] for each in (focus, later))
    expect(torch.allclose(one, other, atol=1e-5), "rotations change when a later block is compressed")
