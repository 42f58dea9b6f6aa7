"""The plug-ins that a run has chosen, called through its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mcframe.errors import UserError
from mcframe.hookspecs import PROJECT
from mcframe.registry.attribution import broken_contract, not_built, without_methods
from mcframe.registry.checks import ContractError, check_product
from mcframe.registry.plugins import Registered, Registry


class Builder(Protocol):
    """A configuration that calls factories with what is bound to them."""

    def build(self, target: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a configurable with what is bound to it."""


@dataclass(frozen=True)
class PluginFactory:
    """A factory. What it makes is checked against the interface of its kind, and remembered as this plug-in's.

    Errors in a gin file come with their place, those of a stranger's code with the plug-in's name. mcframe's own
    plug-ins are no strangers: what goes wrong there is ours, and a traceback is what helps.
    """

    entry: Registered
    factory: Callable[..., Any] | str
    config: Builder
    registry: Registry

    def __call__(self, *arguments: Any) -> Any:
        """Build it. Raises UserError."""
        stranger = self.entry.distribution != PROJECT
        if stranger and (lacking := sorted(getattr(self.entry.factory, "__abstractmethods__", ()))):
            raise without_methods(lacking, self.entry)
        try:
            product = self.config.build(self.factory, *arguments)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if stranger:
                raise not_built(error, self.entry, self.registry) from error
            raise
        try:
            check_product(self.entry.kind, product)
        except ContractError as error:
            if stranger:
                raise broken_contract(error, self.entry) from error
            raise
        self.registry.remember(product, self.entry)
        return product
