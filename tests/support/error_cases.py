"""Plug-ins that fail, each in its own way: what their packages hold, and how a run selects them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A package of one module, `mylab` 1.0, the bindings that select what it offers, and where it fails.

    at   load: `mcframe plugins`; check: `mcframe check`; step: one training step
    """

    title: str
    source: str
    bindings: tuple[str, ...]
    at: str = "check"


HEAD = """import torch
from torch import nn

from mcframe.errors import UserError
from mcframe.hookspecs import Allocator, GistNet, LensNet, Loss, Positions, LossTerm, VariantStrategy, hookimpl

"""
GISTNET = """
class Mine(GistNet):
    def __init__(self, shape, *, layers: int = 1):
        super().__init__()
        self.slots = shape.tree.slots
        self.head = nn.Linear(shape.width, shape.width)

    def forward(self, children, lod):
        return self.head(children[:, :, -self.slots :])


@hookimpl
def register_plugins(register):
    register("mine", Mine)
"""
CHOSEN = ("run.gistnet = @gistnet.mine",)


def of_kind(kind: str, hook: str, code: str) -> str:
    """A module that offers `Mine` under the name `mine`."""
    return f"{HEAD}\n{code}\n\n@hookimpl\ndef {hook}(register):\n    register('mine', Mine, kind={kind!r})\n"


def gistnet(old: str, new: str) -> str:
    """The GistNet that works, with something put wrong."""
    assert old in GISTNET
    return HEAD + GISTNET.replace(old, new)


STRATEGY = """
class Mine(VariantStrategy):
    def __init__(self, tree):
        self.count = 2
        self.tree = tree

    def propose(self, sequences, scores, length, seeds):
        focus = torch.zeros(*seeds.shape, self.tree.blocks, dtype=torch.int64)
        {body}
        return focus
"""

CASES = {
    # ---- while it is loaded
    "import": Case("does not import", "import something_that_is_not_there\n", CHOSEN),
    "api": Case("was made for another API", 'mcframe_api = "7.0"\n' + HEAD + GISTNET, CHOSEN),
    "taken": Case("offers a name that is taken", gistnet('"mine"', '"mean"'), ("run.gistnet = @gistnet.mean",)),
    # ---- its parameters
    "misspelt": Case("gets an unknown parameter", HEAD + GISTNET, (*CHOSEN, "gistnet.mine.layer = 2")),
    "type": Case("gets a value of the wrong type", HEAD + GISTNET, (*CHOSEN, "gistnet.mine.layers = 'two'")),
    # ---- while it is built
    "factory": Case(
        "raises in its factory",
        gistnet("self.head = nn.Linear(shape.width, shape.width)", "self.head = nn.Linear(shape.width, shape.depth)"),
        CHOSEN,
    ),
    "user error": Case(
        "raises a UserError",
        gistnet(
            "        self.head",
            "        if layers < 1:\n"
            "            raise UserError(f'gistnet.mine.layers is {layers}; one is the least', remedy='raise it')\n"
            "        self.head",
        ),
        (*CHOSEN, "gistnet.mine.layers = 0"),
    ),
    "abstract": Case("is missing a method", gistnet("def forward(", "def foward("), CHOSEN),
    "kind": Case(
        "is not of its kind",
        of_kind(
            "gistnet",
            "register_plugins",
            "class Mine(LensNet):\n    def __init__(self, shape):\n        super().__init__()\n\n"
            "    def forward(self, context, embeddings):\n        return embeddings.mean(dim=-1).tanh()",
        ),
        CHOSEN,
    ),
    "nothing": Case(
        "has a factory that returns something else",
        of_kind("gistnet", "register_plugins", "def Mine(shape):\n    return lambda children, lod: children[:, :, :1]"),
        CHOSEN,
    ),
    "signature": Case("has a method of another signature", gistnet("children, lod)", "children)"), CHOSEN),
    "attribute": Case(
        "is missing an attribute",
        of_kind("variants", "register_plugins", STRATEGY.replace("self.count = 2", "self.many = 2").format(body="")),
        ("run.variants = @variants.mine",),
    ),
    # ---- in a training step
    "forward": Case(
        "raises in a training step", gistnet("-self.slots :]", "-self.slots :].view(-1, 7)"), CHOSEN, "step"
    ),
    "shape": Case("returns another shape", gistnet("-self.slots :]", "-self.slots]"), CHOSEN, "step"),
    "dtype": Case(
        "returns another type",
        gistnet("children[:, :, -self.slots :])", "children[:, :, -1:]).double()"),
        CHOSEN,
        "step",
    ),
    "scores": Case(
        "scores beyond its range",
        of_kind(
            "lensnet",
            "register_plugins",
            "class Mine(LensNet):\n    def __init__(self, shape):\n        super().__init__()\n"
            "        self.scale = nn.Parameter(torch.ones(1))\n\n"
            "    def forward(self, context, embeddings):\n        return 3 * self.scale + embeddings.mean(dim=-1)",
        ),
        ("run.lensnet = @lensnet.mine",),
        "step",
    ),
    "invalid focus": Case(
        "proposes a focus that is not valid",
        of_kind("variants", "register_plugins", STRATEGY.format(body="focus[..., 1] = 2  # a quarter of a node")),
        ("run.variants = @variants.mine",),
        "step",
    ),
    "length": Case(
        "proposes another length than requested",
        of_kind("variants", "register_plugins", STRATEGY.format(body="focus[..., 0] = 1")),
        ("run.variants = @variants.mine",),
        "step",
    ),
    "loss": Case(
        "is a loss that returns no LossTerm",
        of_kind(
            "loss",
            "register_plugins",
            "class Mine(Loss):\n    name = 'mine'\n\n    def __init__(self, shape):\n"
            "        super().__init__()\n\n    def forward(self, view):\n        return view.uncompressed.nll.mean()",
        ),
        ("run.extra_losses = [@loss.mine]",),
        "step",
    ),
    "positions": Case(
        "is positions of another width",
        of_kind(
            "positions",
            "register_plugins",
            "class Mine(Positions):\n    def __init__(self, shape):\n        super().__init__()\n"
            "        self.width = shape.width\n\n    def forward(self, context):\n"
            "        angle = context.token[:, None, :, None] / torch.arange(1, self.width + 1)\n"
            "        return angle.cos(), angle.sin()",
        ),
        ("run.positions = @positions.mine",),
        "step",
    ),
}
