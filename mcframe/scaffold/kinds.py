"""What the templates of a kind of plug-in have to be told besides its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in that `mcframe new-plugin` has templates for.

    noun      what one is called in running text
    suffix    of the class; its conformance contract is named after it
    contract  the class of `mcframe.testing` that checks it
    does      what the template's implementation does, for the package's description
    function  the method that its author is meant to change
    change    what that method decides, as the end of a sentence: `says what ...`
    """

    noun: str
    suffix: str
    contract: str
    does: str
    function: str
    change: str

    @property
    def article(self) -> str:
        """`a`, `an` or, for what is many, nothing; with the space behind it."""
        if self.noun.endswith("s"):
            return ""
        return "an " if self.noun[0].lower() in "aeio" else "a "


KINDS: Mapping[str, Kind] = {
    "gistnet": Kind(
        "GistNet", "GistNet", "GistNetContract", "attention pooling of a block's children",
        "weights", "says how much each child of a block counts in its gist",
    ),
    "lensnet": Kind(
        "LensNet", "LensNet", "LensNetContract", "a small network that scores one entry at a time",
        "features", "says what LensNet is told of each entry",
    ),
    "allocator": Kind(
        "allocator", "Allocator", "AllocatorContract", "expands what is wanted and collapses what is worth least",
        "worth", "says what each block is worth",
    ),
    "variants": Kind(
        "variant strategy", "Variants", "VariantsContract", "contexts in which old blocks are collapsed more often",
        "order", "says in which order blocks are collapsed",
    ),
    "positions": Kind(
        "positions", "Positions", "PositionsContract", "rotary ones, interpolated",
        "place", "says where an entry stands",
    ),
    "text": Kind(
        "text source", "Text", "TextSourceContract", "the docstrings of an installed package",
        "documents_in", "says which documents a file holds",
    ),
    "tokenizer": Kind(
        "tokenizer", "Tokenizer", "TokenizerContract", "bytes, and an id for each of some frequent pieces",
        "split", "cuts a text into tokens",
    ),
    "task": Kind(
        "generated task", "Task", "TaskContract", "find the digit behind the mark",
        "generate", "writes the sequences",
    ),
    "loss": Kind(
        "loss", "Loss", "LossContract", "gists as long as tokens are",
        "cost", "returns the loss of each sequence",
    ),
    "evaluation": Kind(
        "evaluation", "Evaluation", "EvaluationContract", "which block is missed most",
        "costs", "makes figures of the losses",
    ),
    "logger": Kind(
        "logger", "Logger", "LoggerContract", "a table that spreadsheets open",
        "chosen", "says which metrics are written",
    ),
    "callback": Kind(
        "callback", "Callback", "CallbackContract", "the size of the gradient of each part",
        "size", "returns a scalar for a part of the model",
    ),
}  # fmt: skip
"""By the kind's name in gin files."""
