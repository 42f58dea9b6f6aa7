"""Facts about a run's model, data and machine, from its configuration and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcframe.metrics.mfu import gpt_flops_per_token

_BYTES_AND_SEPARATOR = 257
_READ = ("run.seed", "run.text", "run.tokenizer", "run.task", "run.batch_tokens", "context.window")
_READ_PARTS = ("data.", "text.", "tokenizer.", "task.")


def number(config: Mapping[str, str], key: str) -> float | None:
    """Return a binding that is a number; None if it is missing or something else."""
    try:
        return float(config[key])
    except (KeyError, ValueError):
        return None


def vocabulary(config: Mapping[str, str]) -> float | None:
    """Return the number of ids of the tokenizer, None if the configuration does not have it."""
    for key in ("gpt.vocab_size", "tokenizer.bpe.vocab_size"):
        size = number(config, key)
        if size:
            return size
    return float(_BYTES_AND_SEPARATOR) if config.get("run.tokenizer") == "@tokenizer.bytes" else None


def plain_flops(config: Mapping[str, str]) -> float | None:
    """Return the FLOPs a token of training the plain model without its head, None if its size is unknown."""
    depth, width, window = (number(config, key) for key in ("gpt.depth", "gpt.width", "context.window"))
    if depth is None or width is None or window is None:
        return None
    return gpt_flops_per_token(round(12 * depth * width**2), round(depth), round(width), round(window))


def machine(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recorded machine: `device` is a GPU's name or `cpu`, `ranks` their number. Older runs have neither."""
    recorded = provenance.get("machine")
    return recorded if isinstance(recorded, dict) else {}


def level_predicts_preferences(config: Mapping[str, str]) -> bool:
    """Return whether the signs of LensNet's targets follow from the level of detail alone.

    So with `lens_targets.sides = 'worse'`, and in runs older than that setting. False for an unknown configuration.
    Older runs have the setting under a name that ends in `preference_sides`.
    """
    older = next((value for key, value in config.items() if key.endswith(".preference_sides")), None)
    return bool(config) and config.get("lens_targets.sides", older) != "'both'"


def decides_tokens(key: str) -> bool:
    """Return whether a binding decides which tokens a run reads, and in which order."""
    return key in _READ or key.startswith(_READ_PARTS)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Return the bindings that differ: key -> (value in one, value in the other), None for an unread binding."""
    keys = sorted({*one, *other})
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}
