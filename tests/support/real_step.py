"""A train step with real plug-ins and their own initialisation, and a guard against reading tensors back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mcframe.hookspecs import BaseShape, ModelShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.rope import GaussianRope
from mcframe_plugins.gistnet import TransformerGistNet
from mcframe_plugins.lensnet import TransformerLensNet
from mcframe_plugins.variants import RandomCollapse
from tests.support import oracle
from tests.support.generators import geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import VOCABULARY, Step, assemble

LENGTH = 21
READ_METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
READS_BACK = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
    "equal",
    "allclose",
    "bincount",
    "repeat_interleave.Tensor",
}


class Operations(TorchDispatchMode):
    """Count aten operations; with `refuse`, raise for those that wait for the device."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__()
        self.refuse, self.counts = refuse, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet, overload = func.overloadpacket.__name__, func._overloadname
        self.counts[f"{packet}.{overload}"] += 1
        if self.refuse:
            assert packet not in READS_BACK, packet
            assert f"{packet}.{overload}" not in READS_BACK
            if packet in ("index", "index_put", "index_put_", "_index_put_impl_"):
                indices = [i for i in args[1] if i is not None]
                assert all(i.dtype not in (torch.bool, torch.uint8) for i in indices), "indexing by a mask"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads() -> Iterator[Operations]:
    """Refuse every way of reading a tensor back within this context."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    with pytest.MonkeyPatch.context() as patch:
        for name in READ_METHODS:
            patch.setattr(torch.Tensor, name, refuse)
        with Operations(refuse=True) as operations:
            yield operations


def real_step(
    tree: oracle.Tree, settings: LossConfig | None = None, gist_bias: float | None = None, **gist: object
) -> Step:
    """Build a step as a run does: real plug-ins with their own initialisation."""
    torch.manual_seed(0)
    shape = ModelShape(16, geometry_of(tree))
    model = MegaContextModel(
        GPT(BaseShape(shape.tree, VOCABULARY, GaussianRope), depth=2, width=16, heads=2, gist_bias=gist_bias),
        TransformerGistNet(shape, layers=1, heads=2, **gist),
        TransformerLensNet(shape, layers=1, heads=2),
        RandomCollapse(shape.tree),
        shape.tree,
    )
    return assemble(model, settings or LossConfig())
