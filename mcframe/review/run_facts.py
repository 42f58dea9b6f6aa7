"""What a run's operative configuration says about its model and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcframe.metrics.flops import gpt_flops_per_token

_BYTES_AND_SEPARATOR = 257
_READ = ("run.seed", "run.text", "run.tokenizer", "run.task", "run.batch_tokens", "context.window")
_READ_PARTS = ("data.", "text.", "tokenizer.", "task.")
_VALIDATION = ("validation.windows",)


def number(config: Mapping[str, str], key: str) -> float | None:
    """A binding that is a number; None where it is not there or something else."""
    try:
        return float(config[key])
    except (KeyError, ValueError):
        return None


def vocabulary(config: Mapping[str, str]) -> float | None:
    """How many ids the tokenizer has; None where the configuration does not tell."""
    for key in ("gpt.vocab_size", "tokenizer.bpe.vocab_size"):
        size = number(config, key)
        if size:
            return size
    return float(_BYTES_AND_SEPARATOR) if config.get("run.tokenizer") == "@tokenizer.bytes" else None


def plain_flops(config: Mapping[str, str]) -> float | None:
    """FLOPs a token of training the plain model without its head; None where its size is unknown."""
    depth, width, window = (number(config, key) for key in ("gpt.depth", "gpt.width", "context.window"))
    if depth is None or width is None or window is None:
        return None
    return gpt_flops_per_token(round(12 * depth * width**2), round(depth), round(width), round(window))


def device(provenance: Mapping[str, Any]) -> str | None:
    """What the run computed on: a GPU's name, or `cpu`. None where it is not written down, as in older runs."""
    machine = provenance.get("machine")
    return machine.get("device") if isinstance(machine, dict) else None


def ranks(provenance: Mapping[str, Any]) -> int:
    """How many ranks the run had; 1 where it is not written down."""
    machine = provenance.get("machine")
    return int(machine.get("ranks", 1)) if isinstance(machine, dict) else 1


def preferences_given_away(config: Mapping[str, str]) -> bool:
    """Whether signs of preferences were asked for where the level of detail alone tells them.

    So with `lens_targets.sides = 'worse'`, and in runs older than that setting. False where no configuration is known.
    Older runs have the setting as `objectives.preference_sides`.
    """
    sides = config.get("lens_targets.sides", config.get("objectives.preference_sides"))
    return bool(config) and sides != "'both'"


def decides_what_is_read(key: str) -> bool:
    """Whether a binding decides which tokens a run reads, and in which order."""
    return key in _READ or (key.startswith(_READ_PARTS) and key not in _VALIDATION)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Bindings that differ: key -> (value in one, value in the other), None where nothing has read it."""
    keys = sorted({*one, *other})
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}
