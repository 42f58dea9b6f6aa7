"""The sections on what MegaContext adds: working contexts, LensNet, what compression costs.

drawn  the pictures that belong to a section
"""

from __future__ import annotations

from collections.abc import Sequence

from mcframe.review.document import Part, Strips, Text
from mcframe.review.finding import Case
from mcframe.review.run_facts import preferences_given_away
from mcframe.review.section_parts import plot, present, tabled

_LAYOUT = ("mc/wc_length", "mc/lod_count/", "mc/focus_iterations")
_LENS = (
    "mc/lens_loss", "mc/policy_score_abs_mean", "mc/policy_score_std_mean", "mc/preference_corr_mean",
    "mc/preference_agreement", "mc/attribution_agreement", "mc/preference_strength", "mc/pref_span_corr",
    "mc/pref_score_corr",
)  # fmt: skip
_QUALITY = (
    "mc/adv_delta_", "mc/gist_entry_delta/", "mc/lod_delta/", "mc/delta_after/", "mc/tail_delta", "mc/lod_loss/",
    "mc/gist_kl",
)  # fmt: skip


def layout(case: Case, drawn: Sequence[Part] = ()) -> list[Part]:
    """How long working contexts are, what they are made of, and the first and last that were drawn."""
    run = case.run
    parts = tabled(case, present(run, _LAYOUT))
    if not parts and not run.strips:
        return [Text("The run logs no working contexts: it is a plain one, or they were not drawn.")]
    parts.insert(0, Text(
        "A working context is what the model reads: raw tokens and gists, each of which stands for a block of tokens "
        "(level of detail 1, LOD1) or for a block of gists (LOD2 and up)."
    ))  # fmt: skip
    if run.strips:
        parts.append(Text(
            "Below, a character is a block of tokens: · is read raw, a digit is the level of the gist it is in, | is "
            "the cursor. A context is chosen by what stands before the cursor and judged by what follows: focused ones "
            "by LensNet and the allocator; a random one is a variant of the kind that training compares."
        ))  # fmt: skip
    for tokens, text in run.strips:
        parts += [Text(f"At {tokens:,} {run.x}:"), Strips(text)]
    parts += drawn
    return parts + plot(case, "layout", "Entries by level of detail", *present(run, _LAYOUT[:2]))


def lens(case: Case, drawn: Sequence[Part] = ()) -> list[Part]:
    """How far LensNet's scores follow what was measured."""
    run = case.run
    names = present(run, _LENS)
    if not names:
        return [Text("No metrics of a LensNet in the log.")]
    parts: list[Part] = [Text(
        "LensNet gives each entry of a working context a score: whether detail is wanted there or a gist will do. It "
        "learns from pairs of contexts of the same text, of which one predicts what follows better than the other."
    )]  # fmt: skip
    parts += tabled(case, names)
    if preferences_given_away(run.config) and any(name.startswith("mc/preference_") for name in names):
        parts.append(Text(
            "Agreement and correlation say nothing here: signs were asked for on the worse context of a pair alone, "
            "where the level of detail gives them away (lens_targets.sides). mc/pref_score_corr compares "
            "gists with gists."
        ))  # fmt: skip
    parts += drawn
    return (
        parts
        + plot(case, "lens", "Correlation with preferences", "mc/preference_corr_mean", "mc/pref_score_corr")
        + plot(case, "scores", "Scores: size and spread", "mc/policy_score_abs_mean", "mc/policy_score_std_mean")
    )


def quality(case: Case, drawn: Sequence[Part] = ()) -> list[Part]:
    """What compression costs."""
    run = case.run
    names = present(run, _QUALITY)
    if not names:
        return [Text("No ΔNLL in the log: no variants were trained.")]
    parts: list[Part] = [Text(
        "Variants are working contexts of the same text with other blocks collapsed. ΔNLL is how much worse the same "
        "token is predicted from one than from all raw tokens, in nats: 0 is no loss, less is better."
    )]  # fmt: skip
    parts += tabled(case, names)
    coarse, fine = run.last("mc/lod_loss/1"), run.last("mc/lod_loss/0")
    if coarse is not None and fine is not None:
        parts.append(Text(
            f"mc/lod_loss/1 is {coarse - fine:+.2f} nats from mc/lod_loss/0 at the end, but they predict different "
            "tokens; what a gist costs is told by the deltas, which compare each token with itself."
        ))  # fmt: skip
    behind = present(run, ("mc/lod_delta/", "mc/gist_entry_delta/"))
    parts += drawn
    return (
        parts
        + plot(case, "adv_delta", "ΔNLL of variants, and behind the cursor", "mc/adv_delta_mean", "mc/tail_delta")
        + plot(case, "lod_delta", "ΔNLL by level of detail: behind gists, and at them", *behind)
        + plot(case, "lod_loss", "Loss by level of detail", *present(run, ("mc/lod_loss/",)))
    )
