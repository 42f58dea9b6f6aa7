"""Clauses of LensNets: scores in their range, of entries alone, without hindsight."""

from __future__ import annotations

from dataclasses import replace

import torch

from mcframe.context.working_context import build_context, raw_context
from mcframe.testing.examples import for_all
from mcframe.testing.inputs import randn, trials
from mcframe.testing.plugin_calls import LensNetCall
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.training_step import GEOMETRY, build_step, some_tokens


@requirement("L1", "Scores have the shape [R, L], whatever the context", "lensnet", after=("P9",))
def l1_shape(plugin: PluginUnderTest) -> None:
    """Uncompressed, compressed to several levels, with several slots, of equal and of different lengths."""

    def check(trial: LensNetCall) -> None:
        scores, wanted = trial.run(), list(trial.context.valid.shape)
        expect(list(scores.shape) == wanted, f"{wanted} entries gave scores {list(scores.shape)} ({trial.tree})")
        expect(scores.is_floating_point(), f"scores are {scores.dtype}")

    for_all(trials(plugin), check, examples=25)


@requirement("L2", "Scores lie in [-1, 1], whatever the scale of the embeddings", "lensnet", after=("L1",))
def l2_range(plugin: PluginUnderTest) -> None:
    """All zeros among them."""

    def check(trial: LensNetCall) -> None:
        for scale in (0.0, 0.02, 1.0, 1e4):
            scores = trial.given(embeddings=trial.embeddings * scale).run()
            expect(bool(scores.isfinite().all()), f"embeddings of scale {scale} gave scores that are not finite")
            most = float(scores.detach().abs().max()) if scores.numel() else 0.0
            expect(most <= 1, f"embeddings of scale {scale} gave a score of {most:.3g}")

    for_all(trials(plugin), check)


@requirement("L3", "What stands where `context.valid` is False does not matter", "lensnet", after=("L1", "M4"))
def l3_filling(plugin: PluginUnderTest) -> None:
    """Neither its embedding nor its place or level, nor whether it is there at all."""

    def check(trial: LensNetCall) -> None:
        valid, wanted = trial.context.valid, trial.run()
        noise = torch.where(valid[..., None], trial.embeddings, 50 * randn(tuple(trial.embeddings.shape), 1))
        filled = trial.given(embeddings=noise)
        if trial.context.nll is not None:
            filled = filled.given(nll=torch.where(valid, trial.context.nll, 50.0))
        moved = _most(filled.run() - wanted)
        expect(moved < 1e-4, f"with something else in the filling, scores of entries change by up to {moved:.2g}")
        for row, length in enumerate(valid.sum(dim=1).tolist()):
            alone = build_context(trial.context.focus[[row]], trial.tree, length + trial.tree.tail).before_cursor()
            if trial.context.nll is not None:
                alone = replace(alone, nll=trial.context.nll[[row], :length])
            scores = replace(trial, context=alone, embeddings=trial.embeddings[[row], :length]).run()
            moved = _most(scores[0] - wanted[row, :length])
            expect(moved < 1e-4, f"without filling, scores of entries change by up to {moved:.2g}")

    for_all(trials(plugin, context="padded"), check)


@requirement("L4", "Nothing at or behind the cursor changes a score", "lensnet", after=("L3",))
def l4_hindsight(plugin: PluginUnderTest) -> None:
    """In the real step: the framework passes entries before the cursor alone, and there is no other way to look."""
    model = build_step(plugin).eval().model
    tokens, cursor = some_tokens(0)[:, :-1], GEOMETRY.cursor
    other = tokens.clone()
    other[:, cursor:] = (other[:, cursor:] + 1) % model.gpt.vocab_size
    focus = torch.zeros(len(tokens), GEOMETRY.blocks, dtype=torch.long)
    focus[:, :4], focus[:, 4:6] = 2, 1
    raw = raw_context(GEOMETRY, len(tokens), tokens.device)
    with torch.no_grad():
        for what, context in {"raw": raw, "compressed": build_context(focus, GEOMETRY)}.items():
            one, two = (model.scores(context, *model.encode(each, with_nll=True)) for each in (tokens, other))
            moved = _most((one - two)[context.before_cursor().valid])
            expect(moved < 1e-5, f"tokens behind the cursor change scores of the {what} context by up to {moved:.2g}")


def _most(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max()) if difference.numel() else 0.0
