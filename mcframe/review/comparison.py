"""Several runs side by side: tokens, final metrics over seeds, curves, configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcframe.review.document import Document, Grid, Items, Text
from mcframe.review.finding import Plot
from mcframe.review.plots import draw
from mcframe.review.record import Record
from mcframe.review.rules import Rules
from mcframe.review.run_facts import differences
from mcframe.review.same_tokens import compare_tokens
from mcframe.review.sections import Parts
from mcframe.review.tables import NOTHING, rounded, unit_and_meaning, with_error
from mcframe.sweep.intervals import LEVEL, estimate
from mcframe.training.update_ratio import METRIC as UPDATE_RATIO

_SEED = "run.seed"
_OVERLAID = (
    "val/bpb", "val/loss", "train/loss_lod0", "train/loss", "train/tok_per_sec", "train/mfu", "mc/tail_delta",
    "mc/adv_delta_mean", "mc/lod_delta/1", "mc/gist_entry_delta/1", "mc/preference_corr_mean", "mc/wc_length",
)  # fmt: skip
_NOT_FINAL = (
    "train/tokens", "train/lr", "train/grad_accum_steps", "mc/grad_accum_steps", "mc/lod_count/", "mc/focus_iter",
)  # fmt: skip


def named(runs: Sequence[Record]) -> dict[str, Record]:
    """Return runs by their folder's name, with the parent folder where two have the same name."""
    names = [run.name for run in runs]
    labels: dict[str, Record] = {}
    for run, name in zip(runs, names, strict=True):
        label = name if names.count(name) == 1 else f"{run.directory.resolve().parent.name}/{name}"
        while label in labels:
            label += "'"
        labels[label] = run
    return labels


def compare(runs: Mapping[str, Record], rules: Rules) -> Document:
    """Return the document. Runs by label, in the order of the command line."""
    document = Document("Comparison: " + ", ".join(runs), f"{len(runs)} runs. Written by mcframe compare.")
    document.section("The same tokens?", Items(token_comparisons(runs)))
    document.section("Final metrics", *_finals(runs, rules))
    overlays = [draw(Plot(name.replace("/", "_"), name, (name,)), runs) for name in _OVERLAID]
    drawn: Parts = [picture for picture in overlays if picture is not None]
    document.section("Curves", *(drawn or [Text("No metric of these runs is drawn.")]))
    document.section("Configurations", *_configurations(runs))
    rows = [
        (label, run.state, run.read, str(run.provenance.get("revision") or "not recorded"))
        for label, run in runs.items()
    ]
    notes = [f"{label}: {note}" for label, run in runs.items() for note in run.notes]
    grid = Grid(("run", "state", "read", "revision"), rows, words=True)
    document.section("Provenance", grid, Items(notes) if notes else None)
    return document


def token_comparisons(runs: Mapping[str, Record]) -> list[str]:
    """Return a sentence for each run but the first: whether it read the same tokens as the first."""
    (first, base), *others = runs.items()
    return [f"{first} and {label} {compare_tokens(base, run).text}" for label, run in others]


def groups(runs: Mapping[str, Record]) -> dict[str, list[str]]:
    """Return labels of runs whose configurations differ in the seed alone, by the first of them."""
    found: dict[str, list[str]] = {}
    for label, run in runs.items():
        same = (
            key for key in found
            if run.config and runs[key].config and set(differences(runs[key].config, run.config)) <= {_SEED}
        )  # fmt: skip
        found.setdefault(next(same, label), []).append(label)
    return found


def _finals(runs: Mapping[str, Record], rules: Rules) -> Parts:
    together = groups(runs)
    logged = {name for run in runs.values() for name in run.named("") if not name.startswith(_NOT_FINAL)}
    evaluated = {n for run in runs.values() for n in run.evaluation if not n.endswith(("_low", "_high"))}
    names = sorted(logged, key=lambda name: (_rank(name), name)) + sorted(evaluated - logged)
    headers = [f"{key} ({len(labels)} runs)" if len(labels) > 1 else key for key, labels in together.items()]
    rows = []
    for name in names:
        cells = [_cell([_final(runs[label], name, rules) for label in labels]) for labels in together.values()]
        rows.append((name, unit_and_meaning(name)[0], *cells))
    text = f"The mean over the last {100 * rules.late:.0f} % of a run for train/ and mc/, the last value for others."
    many = [labels for labels in together.values() if len(labels) > 1]
    if many:
        text += f" For runs that differ in {_SEED} alone: their mean ± half of the {100 * LEVEL:g} % interval."
        repeated = [labels for labels in many if len({runs[label].config.get(_SEED) for label in labels}) < len(labels)]
        text += "".join(f" {', '.join(labels)} have a seed twice: the interval is too narrow." for labels in repeated)
    else:
        text += " One run each: a difference may be the seed's."
    return [Text(text), Grid(("metric", "unit", *headers), rows)]


def _rank(name: str) -> int:
    """Order metrics: validation and training first, timers and modules last."""
    if name.startswith(UPDATE_RATIO):
        return 4
    if name.endswith("_ms"):
        return 3
    return next((rank for rank, prefix in enumerate(("val/", "train/")) if name.startswith(prefix)), 2)


def _final(run: Record, name: str, rules: Rules) -> float | None:
    series = run.get(name)
    if series is None:
        return run.evaluation.get(name)
    values = series.late(rules.late)
    return float(values.mean()) if name.startswith(("train/", "mc/")) and len(values) else series.last


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    found = estimate(known)
    if found.half is None:
        return rounded(found.mean)
    return f"{with_error(found.mean, found.half) if found.half else rounded(found.mean)} (n = {found.n})"


def _configurations(runs: Mapping[str, Record]) -> Parts:
    unknown = [label for label, run in runs.items() if not run.config]
    known = {label: run.config for label, run in runs.items() if run.config}
    rows = [
        (key, *(config.get(key, NOTHING) for config in known.values()))
        for key in sorted({key for config in known.values() for key in config})
        if len({config.get(key) for config in known.values()}) > 1
    ]
    parts: Parts = [Text(f"Without operative.gin: {', '.join(unknown)}.")] if unknown else []
    if rows:
        parts.append(Grid(("binding", *known), rows, words=True))
    elif len(known) > 1:
        parts.append(Text("The operative configurations are equal."))
    return parts
