"""Several runs side by side: same tokens or not, final metrics over seeds, curves, configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcframe.review.document import Document, Grid, Items, Part, Text
from mcframe.review.figures import NOTHING, figure, unit, with_error
from mcframe.review.finding import Plot
from mcframe.review.plots import draw
from mcframe.review.record import Record
from mcframe.review.rules import Rules
from mcframe.review.run_facts import differences
from mcframe.review.same_tokens import judge_tokens
from mcframe.sweep.intervals import LEVEL, Estimate, estimate
from mcframe.training.update_ratio import METRIC as MOVED

_SEED = "run.seed"
_OVERLAID = (
    "val/bpb", "val/loss", "train/loss_lod0", "train/loss", "train/tok_per_sec", "train/mfu", "mc/tail_delta",
    "mc/adv_delta_mean", "mc/lod_delta/1", "mc/gist_entry_delta/1", "mc/preference_corr_mean", "mc/wc_length",
)  # fmt: skip
_NOT_FINAL = (
    "train/tokens",
    "train/lr",
    "train/grad_accum_steps",
    "mc/grad_accum_steps",
    "mc/lod_count/",
    "mc/focus_iter",
)


def named(runs: Sequence[Record]) -> dict[str, Record]:
    """Runs by their folder's name, with the folder above it where two have the same one."""
    names = [run.name for run in runs]
    labels: dict[str, Record] = {}
    for run, name in zip(runs, names, strict=True):
        label = name if names.count(name) == 1 else f"{run.directory.resolve().parent.name}/{name}"
        while label in labels:
            label += "'"
        labels[label] = run
    return labels


def compare(runs: Mapping[str, Record], rules: Rules) -> Document:
    """The document. runs: label -> run, in the order in which they were named."""
    document = Document("Comparison: " + ", ".join(runs), f"{len(runs)} runs. Written by mcframe compare.")
    document.section("The same tokens?", Items(spoken_tokens(runs)))
    document.section("Final metrics", *_finals(runs, rules))
    overlays = [draw(Plot(_file(name), name, (name,)), runs) for name in _OVERLAID]
    drawn: list[Part] = [picture for picture in overlays if picture is not None]
    document.section("Curves", *(drawn or [Text("No metric of these runs is drawn.")]))
    document.section("Configurations", *_configurations(runs))
    rows = [
        (label, run.state, run.read, str(run.provenance.get("revision") or "not written down"))
        for label, run in runs.items()
    ]
    document.section("Provenance", Grid(("run", "state", "read", "revision"), rows, words=True), *_notes(runs))
    return document


def spoken_tokens(runs: Mapping[str, Record]) -> list[str]:
    """For each run but the first: whether it read the same tokens as the first, and how one knows."""
    (first, base), *others = runs.items()
    items = []
    for label, run in others:
        tail_mask = judge_tokens(base, run)
        words = {
            True: "read the same tokens",
            False: "did not read the same tokens",
            None: "may or may not have read the same tokens",
        }
        items.append(f"{first} and {label} {words[tail_mask.same]}: {'; '.join(tail_mask.reasons)}.")
    return items


def groups(runs: Mapping[str, Record]) -> dict[str, list[str]]:
    """Labels of runs whose configurations differ in the seed alone, by the first of them."""
    found: dict[str, list[str]] = {}
    for label, run in runs.items():
        twin = next((key for key in found if _differ_in_seed(runs[key], run)), None)
        found.setdefault(twin or label, []).append(label)
    return found


def _differ_in_seed(one: Record, other: Record) -> bool:
    if not one.config or not other.config:
        return False
    return set(differences(one.config, other.config)) <= {_SEED}


def _finals(runs: Mapping[str, Record], rules: Rules) -> list[Part]:
    together = groups(runs)
    logged = {name for run in runs.values() for name in run.named("") if not name.startswith(_NOT_FINAL)}
    names = sorted(logged, key=lambda name: (_rank(name), name))
    names += sorted(
        {n for run in runs.values() for n in run.evaluation if not n.endswith(("_low", "_high")) and n not in names}
    )
    headers = [f"{key} ({len(labels)} runs)" if len(labels) > 1 else key for key, labels in together.items()]
    rows = []
    for name in names:
        cells = [_cell([_final(runs[label], name, rules) for label in labels]) for labels in together.values()]
        rows.append((name, unit(name), *cells))
    said = f"The mean over the last {100 * rules.late:.0f} % of a run for train/ and mc/, the last value for others."
    many = [labels for labels in together.values() if len(labels) > 1]
    if many:
        said += f" Where runs differ in {_SEED} alone: their mean ± half of the {100 * LEVEL:g} % interval over seeds."
        repeated = [labels for labels in many if len({runs[label].config.get(_SEED) for label in labels}) < len(labels)]
        said += "".join(f" {', '.join(labels)} hold a seed twice: the interval is too narrow." for labels in repeated)
    else:
        said += " One run each: a difference may be the seed's."
    return [Text(said), Grid(("metric", "unit", *headers), rows)]


def _rank(name: str) -> int:
    """What a reader looks for first stands first; what every module or every phase has, last."""
    if name.startswith(MOVED):
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
    found: Estimate = estimate(known)
    if found.half is None:
        return figure(found.mean)
    return f"{with_error(found.mean, found.half) if found.half else figure(found.mean)} (n = {found.n})"


def _configurations(runs: Mapping[str, Record]) -> list[Part]:
    unknown = [label for label, run in runs.items() if not run.config]
    parts: list[Part] = [Text(f"No operative.gin: {', '.join(unknown)}.")] if unknown else []
    known = {label: run.config for label, run in runs.items() if run.config}
    keys = sorted({key for config in known.values() for key in config})
    rows = [
        (key, *(config.get(key, NOTHING) for config in known.values()))
        for key in keys
        if len({config.get(key) for config in known.values()}) > 1
    ]
    if rows:
        parts.append(Grid(("binding", *known), rows, words=True))
    elif len(known) > 1:
        parts.append(Text("The operative configurations are equal."))
    return parts


def _notes(runs: Mapping[str, Record]) -> list[Part]:
    notes = [f"{label}: {note}" for label, run in runs.items() for note in run.notes]
    return [Items(notes)] if notes else []


def _file(name: str) -> str:
    return name.replace("/", "_")
