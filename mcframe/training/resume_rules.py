"""Settings that differ from those of the checkpoint that a run resumes from: each is applied, refused or ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from mcframe.config import Config
from mcframe.config.run_config import DEFAULTS
from mcframe.data.token_file import token_file
from mcframe.errors import UserError
from mcframe.metrics.tables import FittedTable
from mcframe.training.build import Components
from mcframe.training.checkpoint_folder import Checkpoint

APPLIED, REFUSED, IGNORED = "applied", "refused", "ignored"
DATA = "accepted if the tokens are the same"

RULES = (
    (r"run\.start_from", IGNORED),  # the checkpoint has its own weights
    (r"gpt\.gist_bias", IGNORED),  # an initial value
    (r"gpt\.activation_checkpointing", APPLIED),
    (r"data\.document_mask", REFUSED),
    (r"run\.(text|tokenizer|task)|(text|tokenizer|task)\..*|data\..*", DATA),
    (r"run\.(batch_tokens|seed|gistnet|lensnet|positions|optimizer|trainable)", REFUSED),
    (r"(gpt|gistnet|lensnet|positions)\..*", REFUSED),
    (r"context\.(window|block_size|levels|slots)", REFUSED),
    (r"deepspeed\.precision", REFUSED),
)
"""Patterns of bindings and their effect; the first that matches holds. All other bindings are applied.

Refused are those that change the order of the data, the meaning of the weights, or the form of the optimizer's state.
"""


@dataclass(frozen=True)
class Difference:
    """A binding that is not the checkpoint's: both values as JSON, and the effect of the new one."""

    binding: str
    before: Any
    now: Any

    @property
    def effect(self) -> str:
        """The effect of the new value, by `RULES`."""
        name = self.binding.rpartition("/")[2]
        # These values add or remove parameters.
        removes = {"gpt.gist_bias": None, "run.variants": "@variants.none"}
        if name in removes and removes[name] in (self.before, self.now):
            return REFUSED
        return next((effect for pattern, effect in RULES if re.fullmatch(pattern, name)), APPLIED)


def differences(checkpoint: Checkpoint, config: Config) -> list[Difference]:
    """Return the bindings that differ from the checkpoint's; an unbound parameter has its default.

    Raises:
        UserError: One of them is refused.
    """
    found = changed_bindings(checkpoint, config)
    if refused := [each for each in found if each.effect == REFUSED]:
        raise UserError(
            f"{checkpoint.path} was written with other settings, which a resumed run cannot change:"
            + "".join(f"\n  it has {each.binding} = {each.before!r}; this run has {each.now!r}" for each in refused),
            remedy=f"Set {refused[0].binding} as before, or start a new run with --resume never; run.start_from takes "
            "the weights of this one.",
            binding=refused[0].binding,
        )
    return found


def changed_bindings(checkpoint: Checkpoint, config: Config) -> list[Difference]:
    """Return the bindings that differ from the checkpoint's; an unbound parameter has its default."""
    before, now = checkpoint.facts["bindings"], config.parameters()
    found = []
    for key in sorted(before.keys() | now.keys()):
        default = config.default(key)
        difference = Difference(key, *(_with_default(key, values.get(key, default)) for values in (before, now)))
        if difference.before != difference.now:
            found.append(difference)
    return found


def check_same_run(checkpoint: Checkpoint, config: Config) -> None:
    """Raise UserError, naming the bindings that differ, unless a complete run is the one that was requested."""
    found = [each for each in changed_bindings(checkpoint, config) if each.binding != "run.total_tokens"]
    if found:
        raise UserError(
            f"{checkpoint.path.parents[1]} holds a complete run of {checkpoint.tokens:,} tokens with other bindings:"
            + "".join(f"\n  it has {each.binding} = {each.before!r}; this run has {each.now!r}" for each in found),
            remedy="Pass another --run-dir, or --resume never for a new directory. To continue that run with these "
            "bindings, increase run.total_tokens.",
            binding=found[0].binding,
        )


def _with_default(key: str, value: Any) -> Any:
    """Return the value, or the plug-ins that None stands for."""
    chosen = DEFAULTS.get(key.removeprefix("run.")) if key.startswith("run.") and value is None else None
    if chosen is None:
        return value
    return f"@{chosen}" if isinstance(chosen, str) else [f"@{name}" for name in chosen]


def as_table(found: Sequence[Difference]) -> FittedTable:
    """Return the differences as a table for the start-up summary."""
    columns = ("binding", "checkpoint", "now", "effect")
    table = FittedTable(*columns, title="changed since the checkpoint", title_justify="left")
    for each in found:
        table.add_row(*map(Text, (each.binding, repr(each.before), repr(each.now), each.effect)))
    return table


def data_identity(components: Components) -> dict[str, Any]:
    """Return what determines the sequences of a run: for its checkpoints, and for comparison with one.

    Text that is not streamed is identified by its tokens as well.
    """
    text, tokenizer, fraction = components.text, components.tokenizer, components.run_config.data.validation_fraction
    if components.task is not None:
        return {"task": components.task.identity}
    file = None if text.streaming else token_file(text, tokenizer, split="train", fraction=fraction)
    return {
        "run.text": text.identity,
        "run.tokenizer": tokenizer.identity,
        "data.validation_fraction": fraction,
        "tokens": file.digest if file else None,
    }


def check_data(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """Raise UserError, naming what differs, unless the run would read the sequences of the checkpoint.

    Text with another identity is accepted if its tokens are the same: files may move.
    """
    before = checkpoint.facts["data"]
    if before == now or (before.get("tokens") and before.get("tokens") == now.get("tokens")):
        return
    names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and name != "tokens"]
    what = " and ".join(sorted(names)) or "the text"
    raise UserError(
        f"{checkpoint.path} was trained on other data: {what} differs, so that its position in the data means nothing",
        remedy="Restore the text, the tokenizer and the split of the checkpoint, or start a new run with --resume "
        "never; run.start_from takes the weights of this one.",
    )
