"""The review of a run, in the shape of a performance review that a person would write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from mcframe.review.controller_sections import layout, lens, quality
from mcframe.review.document import Document, Found, Grid, Items, Part, Text, Tile, Tiles
from mcframe.review.drawn_pictures import drawn
from mcframe.review.figures import figure, late_mean, table, unit
from mcframe.review.finding import Case, Finding, NotJudged
from mcframe.review.judging import judge
from mcframe.review.plots import draw
from mcframe.review.provenance import provenance
from mcframe.review.record import Record
from mcframe.review.rules import SEVERITIES
from mcframe.review.rules_of_time import SPEED
from mcframe.review.same_tokens import judge_tokens
from mcframe.review.section_parts import plot, present, runs
from mcframe.review.time_section import throughput
from mcframe.training.update_ratio import METRIC as MOVED

_VALIDATION = ("val/bpb", "val/loss", "train/loss_lod0", "train/loss")
_TOKENS_READ = {
    True: "They read the same tokens",
    False: "They did not read the same tokens",
    None: "Whether they read the same tokens is unknown",
}


def review(case: Case) -> tuple[Document, list[Finding]]:
    """The document and its findings, gravest first."""
    run, pictures = case.run, drawn(case.run)
    found, unjudged, silent = judge(case)
    document = Document(
        f"Performance review: {run.name}",
        f"Steps {run.steps[0]:,} to {run.steps[1]:,}, {run.tokens[1]:,} {run.x}. Written by mcframe review.",
    )
    document.section("Summary", *_summary(case, found))
    document.section("Training throughput", *throughput(case))
    document.section("Controller metrics: LOD layout", *layout(case, pictures.get("contexts", ())))
    document.section("Controller metrics: LensNet", *lens(case, pictures.get("lens", ())))
    document.section("Controller metrics: variant quality", *quality(case, pictures.get("gist_cost", ())))
    document.section("Weights by module", *_weights(case))
    shown: list[Part] = [
        Found(number, finding, draw(finding.plot, runs(case)) if finding.plot else None)
        for number, finding in enumerate(found, 1)
    ]
    document.section("EvalResult", *(shown or [Text("No rule found anything.")]), *_judged(unjudged, silent))
    advice = [*(finding.step for finding in found), *(each.step for each in unjudged if each.step)]
    steps = list(dict.fromkeys(advice))
    document.section("Next steps", Items(steps, True) if steps else Text("None from the rules."))
    document.section("Provenance", *provenance(case))
    return document, found


def _summary(case: Case, found: list[Finding]) -> list[Part]:
    run, name = case.run, next(iter(present(case.run, _VALIDATION)), "")
    items = []
    if name:
        items.append(
            f"{name} went from {figure(run.series[name].first)} to {figure(run.series[name].last)} {unit(name)}."
        )
        if case.twin is not None:
            items += _against(case, case.twin, name)
    items += [f"{finding.severity}: {finding.title}" for finding in found] or ["No rule found anything."]
    parts: list[Part] = [Tiles(_tiles(case, found, name)), Items(items)]
    parts += plot(case, "summary", name, name) if name else []
    if name.startswith("val/"):
        parts += plot(case, "loss", "Training loss, uncompressed", _VALIDATION[2])
    return parts


def _tiles(case: Case, found: Sequence[Finding], name: str) -> list[Tile]:
    run = case.run
    took = timedelta(seconds=round(run.times[1] - run.times[0]))
    tiles = [
        Tile("state", run.state, f"{took} from first to last line"),
        Tile(run.x, f"{run.tokens[1]:,}", f"{run.steps[1]:,} steps"),
    ]
    if name:
        theirs = case.twin.last(name) if case.twin is not None else None
        first = f"from {figure(run.series[name].first)}"
        note = f"{first}; {case.twin.name}: {figure(theirs)}" if case.twin and theirs is not None else first
        tiles.append(Tile(f"{name}, {unit(name)}", figure(run.series[name].last), note))
    for metric, label in ((SPEED, "tokens/s"), ("train/mfu", "MFU, a fraction")):
        if run.get(metric):
            mean, _, doubt = late_mean(run, metric, case.rules).partition(" ± ")
            said = f"mean of the last {100 * case.rules.late:.0f} %"
            tiles.append(Tile(label, mean, f"{said}, ± {doubt}" if doubt else said))
    counts = Counter(finding.severity for finding in found)
    said = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    return [
        *tiles,
        Tile("findings", str(len(found)), said or "no rule found anything", found[0].severity if found else "low"),
    ]


def _against(case: Case, twin: Record, name: str) -> list[str]:
    """The difference to the twin at the last tokens that both have."""
    mine, theirs = case.run.get(name), twin.get(name)
    tail_mask = judge_tokens(case.run, twin)
    items = [f"{_TOKENS_READ[tail_mask.same]}: {'; '.join(tail_mask.reasons)}."]
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


def _weights(case: Case) -> list[Part]:
    names = case.run.named(MOVED)
    if not names:
        return [Text("The log does not say how far weights move.")]
    said = "How far a module's weights moved from one line of the log to the next, as a share of their norm. Exactly 0 "
    said += "is a module that nothing reaches. Parts that the run does not train are not listed."
    grid = table(case.run, names, case.rules)
    rows = [(row[0].removeprefix(MOVED), *row[2:]) for row in grid.rows]
    return [Text(said), Grid(("module", *grid.columns[2:]), rows)]


def _judged(unjudged: list[NotJudged], silent: list[str]) -> list[Part]:
    parts: list[Part] = [Text(f"Rules that looked and found nothing: {', '.join(silent) or 'none'}.")]
    if unjudged:
        parts.append(Grid(("not judged", "why"), [(each.rule, each.reason) for each in unjudged], words=True))
    return parts
