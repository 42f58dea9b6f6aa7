"""The sections of a review: throughput, working contexts, LensNet, the cost of compression, weights, provenance."""

from __future__ import annotations

from collections.abc import Sequence

from mcframe import __version__
from mcframe.metrics.timers import OTHER, OTHER_PARTS
from mcframe.review.document import Grid, Items, Part, Picture, Text, Verbatim
from mcframe.review.finding import Case, Plot
from mcframe.review.plots import draw
from mcframe.review.record import Record
from mcframe.review.run_facts import level_predicts_preferences
from mcframe.review.speed_rules import PARTS, SPEED
from mcframe.review.tables import table
from mcframe.training.update_ratio import METRIC as UPDATE_RATIO

Parts = list[Part | None]
_TIME = (SPEED, "train/mfu", "train/hfu", "train/tokens_per_step")
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
_PROVENANCE = ("read", "steps", "state", "revision", "versions", "machine", "command")


def plot(case: Case, name: str, title: str, *metrics: str, stacked: bool = False) -> Part | None:
    """Return a plot of these metrics, None if none has a point."""
    return draw(Plot(name, title, metrics, stacked=stacked), case.runs)


def logged(run: Record, prefixes: Sequence[str]) -> list[str]:
    """Return the metrics of the run with these names; a name that ends with / or _ is a prefix."""
    names: list[str] = []
    for name in prefixes:
        found = sorted(run.named(name), key=_natural) if name.endswith(("/", "_")) else [name] * bool(run.get(name))
        names += [each for each in found if each not in names]
    return names


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("/")
    return (head, int(tail)) if tail.isdigit() else (name, 0)


def throughput(case: Case) -> Parts:
    """Speed, MFU, and the time of a step by phase."""
    run = case.run
    timers = run.named("", "_ms")
    # In detail where the parts of the remainder are logged.
    detail = logged(run, OTHER_PARTS)
    phases = logged(run, [name for name in PARTS if name != OTHER or not detail]) + detail
    mfu = "MFU is a fraction of the device's peak: 0.41 is 41 %, 0.0041 is 0.41 %."
    no_mfu = "No MFU is logged: the device's peak is unknown, or the device is a CPU."
    no_timers = "No timers of the step's parts are logged, so the time of a step cannot be divided."
    return [
        table(run, logged(run, _TIME) + timers, case.rules),
        Text(
            f"± is half of the {100 * case.rules.level:g} % interval of the mean, which allows for values that are "
            "correlated with their neighbours; a mean without it has too few values. The trend is the rise of a "
            "straight line over the same values, shown where noise alone would show it with a probability of "
            f"{case.rules.alpha:g} at most."
        ),
        Text(mfu if run.get("train/mfu") else no_mfu),
        None if timers else Text(no_timers),
        plot(case, "throughput", "Speed, tokens a second", SPEED),
        plot(case, "timers", "Time of a step by phase, ms", *phases, stacked=True),
    ]


def layout(case: Case, figure: Picture | None) -> Parts:
    """Length and composition of working contexts, with the first and the last that were drawn."""
    run = case.run
    metrics = table(run, logged(run, _LAYOUT), case.rules)
    if metrics is None and not run.strips:
        return [Text("The run logs no working contexts: it is a plain one, or they were not drawn.")]
    strips: list[Part] = []
    for tokens, text in run.strips:
        strips += [Text(f"At {tokens:,} {run.x}:"), Verbatim(text, strips=True)]
    return [
        Text(
            "A working context is the model's input: raw tokens and gists, each of which stands for a block of tokens "
            "(level of detail 1, LOD1) or for a block of gists (LOD2 and up)."
        ),
        metrics,
        Text(
            "Below, a character is a block of tokens: · is raw, a digit is the level of the gist that covers it, | is "
            "the cursor. A context is chosen by the text before the cursor and scored on the text after it: focused "
            "ones by LensNet and the allocator; a random one is a variant as in training."
        )
        if strips
        else None,
        *strips,
        figure,
        plot(case, "layout", "Entries by level of detail", *logged(run, _LAYOUT[:2])),
    ]


def lens(case: Case, figure: Picture | None) -> Parts:
    """Agreement of LensNet's scores with the measurements."""
    run = case.run
    names = logged(run, _LENS)
    if not names:
        return [Text("No metrics of a LensNet in the log.")]
    predicted = level_predicts_preferences(run.config) and any(name.startswith("mc/preference_") for name in names)
    return [
        Text(
            "LensNet scores each entry of a working context: positive for more detail, negative for a gist. It "
            "learns from pairs of contexts of the same text, one of which predicts the following text better."
        ),
        table(run, names, case.rules),
        Text(
            "Agreement and correlation mean nothing here: signs were learned on the worse context of a pair alone, "
            "where the level of detail predicts them (lens_targets.sides). mc/pref_score_corr compares gists with "
            "gists."
        )
        if predicted
        else None,
        figure,
        plot(case, "lens", "Correlation with preferences", "mc/preference_corr_mean", "mc/pref_score_corr"),
        plot(case, "scores", "Scores: size and spread", "mc/policy_score_abs_mean", "mc/policy_score_std_mean"),
    ]


def quality(case: Case, figure: Picture | None) -> Parts:
    """Cost of compression."""
    run = case.run
    names = logged(run, _QUALITY)
    if not names:
        return [Text("No ΔNLL in the log: no variants were trained.")]
    coarse, fine = run.last("mc/lod_loss/1"), run.last("mc/lod_loss/0")
    after = logged(run, ("mc/lod_delta/", "mc/gist_entry_delta/"))
    return [
        Text(
            "Variants are working contexts of the same text with other blocks collapsed. ΔNLL is how much worse the "
            "same token is predicted from one than from all raw tokens, in nats: 0 is no loss, less is better."
        ),
        table(run, names, case.rules),
        None
        if coarse is None or fine is None
        else Text(
            f"mc/lod_loss/1 is {coarse - fine:+.2f} nats from mc/lod_loss/0 at the end, but they predict different "
            "tokens; the cost of a gist is in the deltas, which compare each token with itself."
        ),
        figure,
        plot(case, "adv_delta", "ΔNLL of variants, and after the cursor", "mc/adv_delta_mean", "mc/tail_delta"),
        plot(case, "lod_delta", "ΔNLL by level of detail: after gists, and at them", *after),
        plot(case, "lod_loss", "Loss by level of detail", *logged(run, ("mc/lod_loss/",))),
    ]


def weights(case: Case) -> Parts:
    """Relative change of each module's weights."""
    grid = table(case.run, case.run.named(UPDATE_RATIO), case.rules)
    if grid is None:
        return [Text("The log has no changes of weights.")]
    rows = [(row[0].removeprefix(UPDATE_RATIO), *row[2:]) for row in grid.rows]
    text = "Change of a module's weights from one line of the log to the next, as a fraction of their norm. Exactly 0 "
    text += "is a module that no gradient reaches. Parts that the run does not train are not listed."
    return [Text(text), Grid(("module", *grid.columns[2:]), rows)]


def provenance(case: Case) -> Parts:
    """Files, revision, machine and configuration."""
    runs = case.runs
    rows = [[label, *(_origin(run, label) for run in runs.values())] for label in _PROVENANCE]
    notes = [f"{name}: {note}" for name, run in runs.items() for note in run.notes]
    notes.append(f"Thresholds: {case.rules.source}, mcframe {__version__}.")
    config = "\n".join(f"{key} = {value}" for key, value in case.run.config.items())
    return [Grid(("", *runs), rows, words=True), Items(notes), Verbatim(config) if config else None]


def _origin(run: Record, label: str) -> str:
    """Return an entry of a run's provenance as text."""
    known = {"read": run.read, "steps": f"{run.steps[0]:,} to {run.steps[1]:,}", "state": run.state}
    value = known.get(label) or run.provenance.get(label)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value or "not recorded")
