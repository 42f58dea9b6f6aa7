"""A task with bad batches, and a loss that is not finite for marked sequences. Named with --plugin."""

import torch

from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.hookspecs import API_VERSION, Loss, LossTerm, SyntheticBatch, SyntheticTask, hookimpl

mcframe_api = API_VERSION
MARK, MOST = 250, 4096


class Planted(SyntheticTask):
    """Steps of a walk, but random tokens in some sequences, and a mark in others.

    Args:
        garbage: First and last global index of sequences of random tokens.
        marked: Global indices of sequences with a mark.
        omitted: First and last global index of sequences that are not part of the data.
    """

    vocab_size = 256

    def __init__(self, tree, *, garbage: list = (), marked: list = (), omitted: list = ()) -> None:
        self.window, self.garbage, self.marked, self.omitted = tree.window, garbage, marked, omitted
        self.seeds = hash_combine(hash_combine(torch.arange(MOST), 0), 1)  # as `GeneratedWindows` derives them

    @property
    def identity(self):
        return f"planted {self.garbage} {self.marked} {self.omitted}"

    def generate(self, seeds):
        found = seeds[:, None] == self.seeds
        index = torch.where(found.any(1), found.int().argmax(1), -1 - torch.arange(len(seeds)))
        if self.omitted:
            first, last = self.omitted
            index = torch.where(index >= first, index + last + 1 - first, index)
        tokens = (index[:, None] + 3 * torch.arange(self.window + 1)) % 64
        if self.garbage:
            bad = (index >= self.garbage[0]) & (index <= self.garbage[1])
            tokens = torch.where(bad[:, None], random_keys(index, self.window + 1) % 128 + 64, tokens)
        tokens[torch.isin(index, torch.tensor(list(self.marked), dtype=torch.int64)), 1] = MARK
        return SyntheticBatch(tokens, torch.ones(len(seeds), self.window, dtype=torch.bool), tokens[:, 1:] * 0 - 1)


class _Spoils(torch.autograd.Function):
    """The identity, with a gradient of NaN for marked sequences."""

    @staticmethod
    def forward(context, values, marked):
        context.save_for_backward(marked)
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        (marked,) = context.saved_tensors
        return torch.where(marked[:, None], torch.nan, gradient), None


class Spoiled(Loss):
    """A small multiple of the NLL, not finite for marked sequences."""

    name, weight, needs = "spoiled", 0.01, ()

    def __init__(self, shape, *, gradient: bool = False) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, view):
        marked = (view.uncompressed.inputs == MARK).any(1)
        nll = view.uncompressed.nll
        if self.gradient:
            return LossTerm(_Spoils.apply(nll, marked).mean(1))
        return LossTerm(torch.where(marked, torch.nan, nll.mean(1)))


@hookimpl
def register_plugins(register):
    register("planted", Planted)
    register("spoiled", Spoiled)
