"""gin files, read so that every mistake has a file, a line and a remedy. The only package that imports gin.

`gin_reader` finds and parses files into `Binding`s, `diagnosis` explains lines that do not parse, `checks` compares
bindings with the configurables they name, `loader` passes them to gin and calls constructors.
"""

from mcframe.config.configurables import register
from mcframe.config.loader import Config, clear, load
from mcframe.config.values import Binding

__all__ = ["Binding", "Config", "clear", "load", "register"]
