"""The plug-ins that a run selects, built through its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mcframe.errors import Location, UserError
from mcframe.hookspecs import PROJECT
from mcframe.registry.attribution import (
    attribute_calls,
    broken_contract,
    exits_as_errors,
    named,
    not_built,
    without_methods,
)
from mcframe.registry.checks import ContractError, check_product
from mcframe.registry.global_state import StateError, UnchangedState
from mcframe.registry.plugins import Registered, Registry


class Builder(Protocol):
    """A configuration that calls factories with what is bound to them."""

    def build(self, target: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a configurable with what is bound to it."""


@dataclass(frozen=True)
class PluginFactory:
    """A factory whose products are checked against the interface of their kind.

    Errors of a third-party plug-in name it, now and in later calls of the product. Those of mcframe's own plug-ins stay
    as they are, with their traceback.
    """

    entry: Registered
    factory: Callable[..., Any] | str
    config: Builder
    registry: Registry

    def __call__(self, *arguments: Any) -> Any:
        """Build the plug-in. Raises UserError."""
        if self.entry.distribution == PROJECT:
            return self._build(*arguments)
        if missing := sorted(getattr(self.entry.factory, "__abstractmethods__", ())):
            raise without_methods(missing, self.entry)
        try:
            with exits_as_errors(), UnchangedState(f"{named(self.entry)}: its factory"):
                product = self._build(*arguments)
        except StateError as error:
            raise error.at(Location(self.entry.file)) from None
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except ContractError as error:
            raise broken_contract(error, self.entry) from error
        except Exception as error:
            raise not_built(error, self.entry, self.registry) from error
        attribute_calls(product, self.entry)
        return product

    def _build(self, *arguments: Any) -> Any:
        product = self.config.build(self.factory, *arguments)
        check_product(self.entry.kind, product)
        return product
