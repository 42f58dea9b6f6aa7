"""The review of a run: a summary, sections of metrics, findings, next steps."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from mcframe.review.apply_rules import Outcomes, apply_rules
from mcframe.review.document import Document, Found, Grid, Items, Text, Tile, Tiles
from mcframe.review.finding import Case, Finding
from mcframe.review.plots import draw
from mcframe.review.record import Record
from mcframe.review.recorded_figures import recorded_figures
from mcframe.review.rules import SEVERITIES
from mcframe.review.same_tokens import compare_tokens
from mcframe.review.sections import Parts, layout, lens, logged, plot, provenance, quality, throughput, weights
from mcframe.review.speed_rules import SPEED
from mcframe.review.tables import late_mean, rounded, unit_and_meaning

_VALIDATION = ("val/bpb", "val/loss", "train/loss_lod0", "train/loss")
_NO_FINDING = "No rule has a finding."


def review(case: Case) -> tuple[Document, list[Finding]]:
    """Return the document and its findings, most severe first."""
    run, figures = case.run, recorded_figures(case.run)
    outcomes = apply_rules(case)
    document = Document(
        f"Performance review: {run.name}",
        f"Steps {run.steps[0]:,} to {run.steps[1]:,}, {run.tokens[1]:,} {run.x}. Written by mcframe review.",
    )
    document.section("Summary", *_summary(case, outcomes.findings))
    document.section("Training throughput", *throughput(case))
    document.section("Controller metrics: LOD layout", *layout(case, figures.get("contexts")))
    document.section("Controller metrics: LensNet", *lens(case, figures.get("lens")))
    document.section("Controller metrics: variant quality", *quality(case, figures.get("gist_cost")))
    document.section("Weights by module", *weights(case))
    document.section("Rules: findings", *_findings(case, outcomes))
    advice = [finding.step for finding in outcomes.findings] + [skip.step for skip in outcomes.skipped.values()]
    steps = list(dict.fromkeys(filter(None, advice)))
    document.section("Next steps", Items(steps, True) if steps else Text("None from the rules."))
    document.section("Provenance", *provenance(case))
    return document, outcomes.findings


def _summary(case: Case, found: list[Finding]) -> Parts:
    run, name = case.run, next(iter(logged(case.run, _VALIDATION)), "")
    items = [f"{finding.severity}: {finding.title}" for finding in found] or [_NO_FINDING]
    parts: Parts = [Tiles(_tiles(case, found, name))]
    if not name:
        return [*parts, Items(items)]
    series, unit = run.series[name], unit_and_meaning(name)[0]
    changed = f"{name} changed from {rounded(series.first)} to {rounded(series.last)} {unit}."
    against = _against(case.run, case.baseline, name, unit) if case.baseline is not None else []
    parts += [Items([changed, *against, *items]), plot(case, "summary", name, name)]
    if name.startswith("val/"):
        parts.append(plot(case, "loss", "Training loss, uncompressed", _VALIDATION[2]))
    return parts


def _tiles(case: Case, found: list[Finding], name: str) -> list[Tile]:
    run = case.run
    took = timedelta(seconds=round(run.times[1] - run.times[0]))
    tiles = [
        Tile("state", run.state, f"{took} from first to last line"),
        Tile(run.x, f"{run.tokens[1]:,}", f"{run.steps[1]:,} steps"),
    ]
    if name:
        note = f"from {rounded(run.series[name].first)}"
        if case.baseline is not None and (theirs := case.baseline.last(name)) is not None:
            note += f"; {case.baseline.name}: {rounded(theirs)}"
        tiles.append(Tile(f"{name}, {unit_and_meaning(name)[0]}", rounded(run.series[name].last), note))
    for metric, label in ((SPEED, "tokens/s"), ("train/mfu", "MFU, a fraction")):
        if run.get(metric):
            mean, _, error = late_mean(run, metric, case.rules).partition(" ± ")
            note = f"mean of the last {100 * case.rules.late:.0f} %"
            tiles.append(Tile(label, mean, f"{note}, ± {error}" if error else note))
    counts = Counter(finding.severity for finding in found)
    by_severity = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    worst = found[0].severity if found else "low"
    return [*tiles, Tile("findings", str(len(found)), by_severity or "no rule has a finding", worst)]


def _against(run: Record, baseline: Record, name: str, unit: str) -> list[str]:
    """Compare a metric with the baseline's at the last tokens of both, and the tokens of both."""
    items = [f"The two runs {compare_tokens(run, baseline).text}"]
    mine, theirs = run.get(name), baseline.get(name)
    both = set(mine.tokens.tolist()) & set(theirs.tokens.tolist()) if mine and theirs else set()
    if mine is None or theirs is None or not both:
        return items
    at = max(both)
    values = [float(series.means[series.tokens == at][-1]) for series in (mine, theirs)]
    return [
        f"At {at:,.0f} {run.x} {name} is {rounded(values[0])}, that of {baseline.name} {rounded(values[1])}: a "
        f"difference of {values[0] - values[1]:+.4f} {unit} of single runs; seeds may differ as much.",
        *items,
    ]


def _findings(case: Case, outcomes: Outcomes) -> Parts:
    parts: Parts = [
        Found(number, finding, draw(finding.plot, case.runs) if finding.plot else None)
        for number, finding in enumerate(outcomes.findings, 1)
    ]
    parts = parts or [Text(_NO_FINDING)]
    parts.append(Text(f"Rules without a finding: {', '.join(outcomes.silent) or 'none'}."))
    if outcomes.skipped:
        rows = [(rule, skip.reason) for rule, skip in outcomes.skipped.items()]
        parts.append(Grid(("rule that was skipped", "reason"), rows, words=True))
    return parts
