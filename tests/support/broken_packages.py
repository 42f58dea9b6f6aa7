"""Plug-ins that break the requirements of every kind: names, documentation, parameters, construction."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mcframe.hookspecs import hookimpl
from mcframe.testing.reference import LinearGistNet, LowestFirst
from tests.support.planted import breaks


@breaks("P1", "gistnet", "Shouting")
class Shouting(LinearGistNet):
    """Its name has a capital letter."""


@breaks("P1", "allocator", "lowest_allocator")
class Repeating(LowestFirst):
    """Its name repeats its kind."""


@breaks("P2", "gistnet")
class Silent(LinearGistNet):
    pass


@breaks("P2", "gistnet")
class Terse(LinearGistNet):
    """A GistNet."""


@breaks("P2", "gistnet")
class Secretive(LinearGistNet):
    """A linear map with an undocumented parameter."""

    def __init__(self, shape, *, strength: float = 1.0) -> None:
        super().__init__(shape)


@breaks("P3", "gistnet")
class Untyped(LinearGistNet):
    """A linear map. strength: of nothing."""

    def __init__(self, shape, *, strength=1.0):
        super().__init__(shape)


@breaks("P3", "gistnet")
class Unresolved(LinearGistNet):
    """A linear map. strength: of a type that exists only for the type checker."""

    def __init__(self, shape, *, strength: "Imaginary" = 1.0):  # noqa: F821
        super().__init__(shape)


@breaks("P3", "gistnet")
class Functional(LinearGistNet):
    """A linear map. activation: a default that gin cannot write."""

    def __init__(self, shape, *, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__(shape)


def _local():
    class Local(LinearGistNet):
        """A class that no other process finds."""

    return Local


breaks("P5", "gistnet")(_local())


@breaks("P6", "gistnet")
class Unrelated(nn.Module):
    """Has a forward, and is no GistNet."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.inner = LinearGistNet(shape)

    def forward(self, children, lod):
        return self.inner(children, lod)


@breaks("P6", "allocator")
class Abstract(LowestFirst):
    """Cannot be built with its arguments."""

    def __init__(self, tree) -> None:
        raise TypeError("one argument too few")


@breaks("P6", "gistnet")
class TakesNoLevel(LinearGistNet):
    """Its forward takes children alone."""

    def forward(self, children):
        return super().forward(children, 1)


class StatesNoVersion:
    """A plug-in without an API version."""

    @hookimpl
    def register_plugins(self, register):
        register("unversioned", LinearGistNet)
