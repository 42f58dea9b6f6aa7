"""Plug-ins that look well until they are trained: each breaks one requirement of real runs. Named with --plugin."""

import os
import sys

import torch
from torch import nn

from mcframe.hookspecs import API_VERSION, GistNet, LensNet, VariantStrategy, hookimpl
from mcframe.training.flops import StepFlops

mcframe_api = API_VERSION


def _uncounted(*_):
    raise NotImplementedError


if "mcframe.cli.train_many" in sys.orig_argv:  # in the trainings themselves, where a count takes seconds
    StepFlops._run = _uncounted


class _Mean(GistNet):
    """One gist from the mean of the children, through a linear map."""

    def __init__(self, shape):
        super().__init__()
        self.slots = shape.tree.slots
        self.map = nn.Linear(shape.width, shape.width)

    def forward(self, children, lod):
        return self.map(children.mean(2, keepdim=True)).expand(-1, -1, self.slots, -1)


class Sound(_Mean):
    """One gist from the mean of the children, through a linear map; breaks nothing."""


class NotANumber(_Mean):
    """R1: not finite from its third step on."""

    def __init__(self, shape):
        super().__init__(shape)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, children, lod):
        self.steps += self.training and lod == 1
        return super().forward(children, lod) / (self.steps < 5).float()


class Idle(_Mean):
    """R1: has a parameter that nothing reads."""

    def __init__(self, shape):
        super().__init__(shape)
        self.unused = nn.Parameter(torch.zeros(shape.width))


class Forgetful(_Mean):
    """R2: counts its calls in an attribute that no checkpoint holds."""

    def __init__(self, shape):
        super().__init__(shape)
        self.calls = 0

    def forward(self, children, lod):
        self.calls += self.training
        return super().forward(children, lod) * (1 + 0.01 * self.calls)


class Skipping(LensNet):
    """R3: runs one of its layers in every other step only."""

    def __init__(self, shape):
        super().__init__()
        self.always, self.sometimes = (nn.Linear(shape.width, 1) for _ in range(2))
        self.calls = 0

    def forward(self, context, embeddings):
        scores = self.always(embeddings)
        if self.training:
            self.calls += 1
            if self.calls % 2:
                scores = scores + self.sometimes(embeddings)
        return scores.squeeze(-1).tanh()


class Crowded(_Mean):
    """R3: computes something else where there are more ranks."""

    def forward(self, children, lod):
        return super().forward(children, lod) * int(os.environ["WORLD_SIZE"])


class Arbitrary(VariantStrategy):
    """R4: draws from the global random state, which differs from rank to rank."""

    count = 2

    def __init__(self, tree):
        self.tree = tree

    def propose(self, sequences, scores, length, seeds):
        focus = seeds.new_zeros(*seeds.shape, self.tree.blocks)
        blocks = (self.tree.window - length) // (self.tree.block_size - self.tree.slots)
        first = int(torch.randint(self.tree.cursor // self.tree.block_size - blocks + 1, ()))
        focus[..., first : first + blocks] = 1
        return focus


class Compiled(_Mean):
    """R5: compiled, it computes something else."""

    def forward(self, children, lod):
        return super().forward(children, lod) * (2 if torch.compiler.is_compiling() else 1)


class Dying(_Mean):
    """Ends its process in the first step."""

    def forward(self, children, lod):
        if self.training and "RANK" in os.environ:
            os._exit(3)
        return super().forward(children, lod)


class Stuck(_Mean):
    """Waits for a rank that does not come."""

    def forward(self, children, lod):
        if os.environ.get("RANK") == "1":
            torch.distributed.barrier()
        return super().forward(children, lod)


@hookimpl
def register_plugins(register):
    for each in (Sound, NotANumber, Idle, Forgetful, Crowded, Compiled, Dying, Stuck):
        register(f"broken_{each.__name__.lower()}", each)
    register("broken_skipping", Skipping)
    register("broken_arbitrary", Arbitrary)
