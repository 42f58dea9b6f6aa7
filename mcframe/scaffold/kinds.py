"""Facts about the template of each kind of plug-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TemplateKind:
    """A kind of plug-in that `mcframe new-plugin` can write.

    Attributes:
        does: The behaviour of the template's implementation, for the description of the package.
        function: The method that its author changes first.
        change: The purpose of that method, as the end of a sentence.
    """

    does: str
    function: str
    change: str


TEMPLATES: Mapping[str, TemplateKind] = {
    "base": TemplateKind("a decoder with one head a layer", "mix", "returns the result of a layer's network"),
    "gistnet": TemplateKind(
        "attention pooling of the children of a block", "weights", "weighs the children of a block"
    ),
    "lensnet": TemplateKind(
        "a small network that scores one entry at a time", "features", "returns the features of each entry"
    ),
    "allocator": TemplateKind("expands high scores and collapses low ones", "worth", "returns the value of each block"),
    "variants": TemplateKind("collapses old blocks more often", "order", "returns the order in which blocks collapse"),
    "positions": TemplateKind("interpolated rotary positions", "entry_position", "returns the position of each entry"),
    "text": TemplateKind("the docstrings of an installed package", "documents_in", "returns the documents of a file"),
    "tokenizer": TemplateKind("bytes, and ids for frequent pieces", "split", "splits a text into tokens"),
    "task": TemplateKind("find the digit after the mark", "generate", "generates the sequences"),
    "loss": TemplateKind("keeps gists as long as tokens", "cost", "returns the cost of the gists of a sequence"),
    "evaluation": TemplateKind("the cost of dropping each block", "costs", "turns losses into figures"),
    "logger": TemplateKind("a table that spreadsheets open", "selected", "selects the metrics to write"),
    "callback": TemplateKind(
        "the size of the gradient of each part", "size", "returns a scalar for a part of the model"
    ),
    "optimizer": TemplateKind("SGD with Nesterov momentum", "momentum", "returns the momentum of a role"),
    "schedule": TemplateKind("a cosine after a warm-up", "curve", "returns the factor after the warm-up"),
}
"""The template of each kind by its name in gin files."""
