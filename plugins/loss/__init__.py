"""The losses that come with mcframe, one file each."""

from importlib import import_module
from pkgutil import iter_modules

from mcframe.hookspecs import Loss, Register, hookimpl

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the loss of every module of this package under its name."""
    for module in iter_modules(__path__, f"{__name__}."):
        for loss in vars(import_module(module.name)).values():
            if isinstance(loss, type) and issubclass(loss, Loss) and loss.__module__ == module.name:
                register(loss.name, loss)
