"""The review of a run, in the shape of a performance review that a person would write."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from mcframe.review.document import Document, Found, Grid, Items, Part, Picture, Text, Verbatim
from mcframe.review.figures import COLUMNS, figure, late_mean, row, unit
from mcframe.review.finding import Case, Finding, NotJudged, Plot
from mcframe.review.judging import judge
from mcframe.review.plots import draw
from mcframe.review.provenance import provenance
from mcframe.review.record import Record
from mcframe.review.rules import SEVERITIES
from mcframe.review.run_facts import preferences_given_away
from mcframe.review.same_tokens import judge_tokens

_QUALITY = (
    "mc/adv_delta_",
    "mc/gist_entry_delta/",
    "mc/lod_delta/",
    "mc/delta_after/",
    "mc/tail_delta",
    "mc/lod_loss/",
)
_LENS = (
    "mc/lens_loss", "mc/policy_score_abs_mean", "mc/policy_score_std_mean", "mc/preference_corr_mean",
    "mc/preference_agreement", "mc/preference_strength", "mc/pref_span_corr", "mc/pref_score_corr",
)  # fmt: skip
_LAYOUT = ("mc/wc_length", "mc/lod_count/", "mc/focus_iterations")
_VALIDATION = ("val/bpb", "val/loss", "train/loss_lod0", "train/loss")
_TOKENS_READ = {
    True: "They read the same tokens",
    False: "They did not read the same tokens",
    None: "Whether they read the same tokens is unknown",
}
_TIME = ("train/tok_per_sec", "train/mfu", "train/hfu", "train/tokens_per_step")


def review(case: Case) -> tuple[Document, list[Finding]]:
    """The document and its findings, gravest first."""
    run = case.run
    found, unjudged, silent = judge(case)
    document = Document(
        f"Performance review: {run.name}",
        f"Steps {run.steps[0]:,} to {run.steps[1]:,}, {run.tokens[1]:,} {run.x}. Written by mcframe review.",
    )
    document.section("Summary", *_summary(case, found))
    document.section("Training throughput", *_throughput(case))
    document.section("Controller metrics: LOD layout", *_layout(case))
    document.section("Controller metrics: LensNet", *_lens(case))
    document.section("Controller metrics: variant quality", *_quality(case))
    runs = _runs(case)
    shown: list[Part] = [
        Found(number, finding, draw(finding.plot, runs) if finding.plot else None)
        for number, finding in enumerate(found, 1)
    ]
    document.section("Findings", *(shown or [Text("No rule found anything.")]), *_judged(unjudged, silent))
    steps = list(dict.fromkeys(finding.step for finding in found))
    document.section("Next steps", Items(steps, True) if steps else Text("None from the rules."))
    document.section("Provenance", *provenance(case))
    return document, found


def _runs(case: Case) -> dict[str, Record]:
    return {case.run.name: case.run} if case.twin is None else {case.run.name: case.run, case.twin.name: case.twin}


def _plot(case: Case, name: str, title: str, *metrics: str) -> list[Part]:
    picture = draw(Plot(name, title, metrics), _runs(case))
    return [picture] if isinstance(picture, Picture) else []


def _table(case: Case, names: list[str]) -> list[Part]:
    return [Grid(COLUMNS, [row(case.run, name, case.rules) for name in names])] if names else []


def _present(run: Record, wanted: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    for name in wanted:
        prefix = name.endswith(("/", "_"))
        found = sorted(run.named(name), key=_natural) if prefix else [name] if run.get(name) else []
        names += [each for each in found if each not in names]
    return names


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("/")
    return (head, int(tail)) if tail.isdigit() else (name, 0)


def _summary(case: Case, found: list[Finding]) -> list[Part]:
    run = case.run
    took = timedelta(seconds=round(run.times[1] - run.times[0]))
    items = [f"The run is {run.state}: {run.tokens[1]:,} {run.x}, {run.steps[1]:,} steps, {took}."]
    name = next(iter(_present(run, _VALIDATION)), None)
    if name is not None:
        items.append(
            f"{name} went from {figure(run.series[name].first)} to {figure(run.series[name].last)} {unit(name)}."
        )
        if case.twin is not None:
            items += _against(case, case.twin, name)
    speed = late_mean(run, "train/tok_per_sec", case.rules)
    if run.get("train/tok_per_sec"):
        items.append(f"Late in the run it read {speed} tokens/s.")
    counts = Counter(finding.severity for finding in found)
    said = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    items.append(f"Findings: {said}." if found else "No rule found anything.")
    items += [finding.title for finding in found if finding.severity == SEVERITIES[0]]
    return [Items(items), *_plot(case, "summary", name, name)] if name else [Items(items)]


def _against(case: Case, twin: Record, name: str) -> list[str]:
    """The difference to the twin at the last tokens that both have."""
    mine, theirs = case.run.get(name), twin.get(name)
    judged = judge_tokens(case.run, twin)
    items = [f"{_TOKENS_READ[judged.same]}: {'; '.join(judged.reasons)}."]
    if mine is None or theirs is None or not len(mine) or not len(theirs):
        return items
    shared = sorted(set(mine.tokens.tolist()) & set(theirs.tokens.tolist()))
    if not shared:
        return items
    at = shared[-1]
    values = [float(series.means[series.tokens == at][-1]) for series in (mine, theirs)]
    items.insert(0, (
        f"At {at:,.0f} {case.run.x} {name} is {figure(values[0])}, that of {twin.name} {figure(values[1])}: "
        f"a difference of {values[0] - values[1]:+.4f} {unit(name)} of single runs; seeds may differ as much."
    ))  # fmt: skip
    return items


def _throughput(case: Case) -> list[Part]:
    run = case.run
    timers = run.named("", "_ms")
    parts = _table(case, _present(run, _TIME) + timers)
    if run.get("train/mfu"):
        parts.append(Text("MFU is a fraction of the device's peak: 0.41 is 41 %, 0.0041 is 0.41 %."))
    else:
        parts.append(Text("No MFU is logged: the device's peak is unknown, or the device is a CPU."))
    if not timers:
        parts.append(Text("No timers of the step's parts are logged, so what a step spends its time on is not known."))
    return parts + _plot(case, "throughput", "Speed", "train/tok_per_sec") + _plot(case, "timers", "Timers", *timers)


def _layout(case: Case) -> list[Part]:
    run = case.run
    parts = _table(case, _present(run, _LAYOUT))
    for tokens, text in run.strips:
        parts += [
            Text(f"At {tokens:,} {run.x}; · is a raw block, a digit the LOD of a gist, | the cursor:"),
            Verbatim(text),
        ]
    return parts or [Text("The run logs no working contexts: it is a plain one, or they were not drawn.")]


def _lens(case: Case) -> list[Part]:
    run = case.run
    names = _present(run, _LENS)
    if not names:
        return [Text("No metrics of a LensNet in the log.")]
    parts = _table(case, names)
    if preferences_given_away(run.config) and any(name.startswith("mc/preference_") for name in names):
        parts.append(Text(
            "Agreement and correlation say nothing here: signs were asked for on the worse context of a pair alone, "
            "where the level of detail gives them away (objectives.preference_sides). mc/pref_score_corr compares "
            "gists with gists."
        ))  # fmt: skip
    return parts + _plot(case, "lens", "Correlation with preferences", "mc/preference_corr_mean", "mc/pref_score_corr")


def _quality(case: Case) -> list[Part]:
    run = case.run
    names = _present(run, _QUALITY)
    if not names:
        return [Text("No ΔNLL in the log: no variants were trained.")]
    plots = _plot(case, "adv_delta", "ΔNLL of variants", "mc/adv_delta_mean", "mc/tail_delta")
    behind = _present(run, ("mc/lod_delta/", "mc/gist_entry_delta/"))
    return _table(case, names) + plots + _plot(case, "lod_delta", "ΔNLL by level of detail", *behind)


def _judged(unjudged: list[NotJudged], silent: list[str]) -> list[Part]:
    parts: list[Part] = [Text(f"Looked and found nothing: {', '.join(silent) or 'none'}.")]
    if unjudged:
        parts.append(Grid(("not judged", "why"), [(each.rule, each.reason) for each in unjudged], words=True))
    return parts
