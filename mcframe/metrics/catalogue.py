"""Catalogue of metrics: name, unit, better direction and meaning of everything that mcframe logs.

A module declares the metrics that it computes in `DECLARED_METRICS`, a dictionary of literals. The catalogue reads
these dictionaries from the source files without importing the modules, so that `mcframe metrics` needs no torch.
Metrics of training and evaluations are declared here. docs/concepts.md defines the metrics.

A name with a parameter is a pattern: `mc/lod_delta/{lod}` stands for `mc/lod_delta/1`, `mc/lod_delta/2` and so on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Better = Literal["lower", "higher", "neither"]

OF_THE_MACHINE = ("time", "tok_per_sec", "_ms", "mfu", "hfu", "_gib_max", "compile_s", "compiled_graphs")
"""Suffixes of metrics that depend on the machine; equal runs differ in them."""


@dataclass(frozen=True)
class Metric:
    """A catalogue entry: a name or pattern, its unit, the better direction, and its meaning in one sentence."""

    name: str
    unit: str
    better: Better
    meaning: str


DECLARED_METRICS = {
    "mc/focus_iterations": ("iterations", "neither", "rounds of refocusing that changed something"),
    # training
    "train/loss_lod0": ("nats", "lower", "next-token NLL of the uncompressed pass"),
    "train/lr": ("1", "neither", "learning rate of optimizer.lr"),
    "train/grad_norm": ("1", "neither", "norm of the gradient before clipping"),
    "train/grad_norm/{part}": ("1", "neither", "the same of a part: base, gistnet, lensnet, loss_NAME"),
    "train/update_ratio/{module}":
        ("fraction", "neither", "‖w - w′‖ / max(‖w‖, ‖w′‖), w′ at the last log line; at most 1,024 elements a tensor"),
    "train/validation_ms": ("ms", "lower", "one validation; not part of train/step_ms"),
    "train/checkpoint_ms": ("ms", "lower", "time that a step waits for one checkpoint; not part of train/step_ms"),
    "train/checkpoint_write_ms": ("ms", "lower", "writing one checkpoint to disk until it is complete on all ranks"),
    "train/tok_per_sec": ("tokens/s", "higher", "dataset tokens a second, all ranks"),
    "train/mfu": ("fraction", "higher", "fraction of the device's peak FLOP/s: 0.41 is 41 %; every context counts"),
    "train/hfu": ("fraction", "higher", "the same with recomputation in the backward pass"),
    "train/memory_gib_max": ("GiB", "neither", "peak of allocated GPU memory in the interval, maximum over ranks"),
    "train/rss_gib_max": ("GiB", "neither", "peak resident memory of a process so far, maximum over ranks"),
    "train/tokens": ("tokens", "neither", "dataset tokens so far"),
    "train/tokens_per_step": ("tokens", "neither", "dataset tokens of an optimizer step, all ranks"),
    "train/grad_accum_steps": ("micro-batches", "neither", "micro-batches of an optimizer step, per rank"),
    "mc/grad_accum_steps": ("micro-batches", "neither", "the same as train/grad_accum_steps"),
    "val/loss": ("nats", "lower", "next-token NLL on held-out documents, uncompressed"),
    "val/bpb": ("bits/byte", "lower", "the same in bits per byte of text"),
    # gist quality
    "eval/{evaluation}/lod{lod}_at_{length}/delta/{condition}/{where}":
        ("nats", "lower", "mean paired delta of a condition"),
    "eval/{evaluation}/lod{lod}_at_{length}/recovery/{condition}/{where}":
        ("fraction", "higher", "1 - delta / delta of drop or its baseline, the lower; only if it is above 0"),
    "eval/{evaluation}/lod{lod}_at_{length}/gist_minus/{condition}/{where}":
        ("nats", "lower", "delta of gist minus delta of the condition"),
    "eval/{evaluation}/lod{lod}_at_{length}/accuracy/{condition}/{where}":
        ("fraction", "higher", "accuracy of the most likely token"),
    "eval/{evaluation}/lod{lod}_at_{length}/nll/full/{where}":
        ("nats", "lower", "uncompressed NLL of the same targets"),
    "eval/{evaluation}/lod{lod}_at_{length}/targets/{where}": ("targets", "neither", "scored targets"),
    "eval/{evaluation}/lod{lod}_at_{length}/documents/{where}": ("documents", "neither", "documents of these targets"),
    "eval/{evaluation}/lod{lod}_at_{length}/entries": ("entries", "neither", "entries of a working context"),
    # focus quality
    "eval/{evaluation}/at_{length}/gain/{condition}": ("fraction", "higher", "focus gain: 0 = random, 1 = oracle"),
    "eval/{evaluation}/after_{tokens}/accuracy/{arm}": ("fraction", "higher", "accuracy after a history of N tokens"),
    "eval/{evaluation}/after_{tokens}/cache_bytes/{arm}": ("bytes", "lower", "keys and values of the context"),
    "eval/{evaluation}/after_{tokens}/disk_bytes/{arm}": ("bytes", "lower", "what is kept of the history"),
    "eval/{evaluation}/after_{tokens}/nll_gap/{arm}":
        ("nats", "lower", "NLL of an arm minus that of recency with a sink"),
    "eval/{evaluation}/at_{length}/lens_minus/{condition}/{strategy}":
        ("nats", "lower", "NLL of lens minus NLL of the strategy"),
    "eval/{evaluation}/at_{length}/nll/{condition}/{strategy}": ("nats", "lower", "NLL after the cursor by strategy"),
    "eval/{evaluation}/at_{length}/delta/{condition}/{strategy}":
        ("nats", "lower", "the same minus the uncompressed NLL"),
    "eval/{evaluation}/at_{length}/accuracy/{condition}/{strategy}":
        ("fraction", "higher", "accuracy of the most likely token"),
    "eval/{evaluation}/at_{length}/entries/{strategy}": ("entries", "neither", "entries of the strategy's contexts"),
    "eval/{evaluation}/at_{length}/targets": ("targets", "neither", "scored targets after the cursor"),
    "eval/{evaluation}/at_{length}/documents": ("documents", "neither", "documents of these targets"),
}  # fmt: skip


def _declared(source: str) -> Iterator[Metric]:
    """Yield the entries of a module's `DECLARED_METRICS`, which must be a literal."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DECLARED_METRICS":
            for name, (unit, better, meaning) in ast.literal_eval(node.value).items():
                yield Metric(name, unit, better, meaning)


def _collect() -> Iterator[Metric]:
    """Yield the entries of mcframe and of its first-party plug-ins."""
    for package in ("mcframe", "mcframe_plugins"):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(folder).rglob("*.py")):
                source = file.read_text("utf-8")
                if "\nDECLARED_METRICS = " in source:
                    yield from _declared(source)


CATALOGUE: tuple[Metric, ...] = tuple(_collect())

_NUMBER, _WORD = "0|[1-9][0-9]*", r"\w+"
_PARAMETERS = {"lod": _NUMBER, "distance": _NUMBER, "length": r"\d+(?:\.\d+)?", "module": r"\w+(?:\.\w+)*"}
"""Regular expressions of the parameters; any other parameter is a word."""


def pattern(name: str) -> re.Pattern[str]:
    """Return a regular expression for the logged names of a name or pattern of the catalogue."""
    return re.compile(re.sub(r"\{(\w+)\}", lambda p: f"({_PARAMETERS.get(p[1], _WORD)})", name))


_EXACT = {metric.name: metric for metric in CATALOGUE if "{" not in metric.name}
_PATTERNS = [(pattern(metric.name), metric) for metric in CATALOGUE if "{" in metric.name]


@lru_cache(maxsize=1024)
def describe(name: str) -> Metric:
    """Return the catalogue's entry of a logged name, such as `mc/lod_delta/{lod}` for `mc/lod_delta/2`.

    `_low` and `_high`, the bounds of an evaluation's interval, have the entry of the value that they bound.

    Raises:
        KeyError: the name is not in the catalogue.
    """
    if name.startswith("eval/"):
        name = name.removesuffix("_low").removesuffix("_high")
    if name in _EXACT:
        return _EXACT[name]
    for matcher, metric in _PATTERNS:
        if matcher.fullmatch(name):
            return metric
    raise KeyError(name)


@lru_cache(maxsize=1024)
def sample_reductions(name: str) -> tuple[str, ...]:
    """Return the reductions of the samples `name` that the catalogue has as `NAME_REDUCTION`; else the mean."""
    declared = tuple(each for each in ("mean", "std", "min", "max", "p95") if f"{name}_{each}" in _EXACT)
    return declared or ("mean",)
