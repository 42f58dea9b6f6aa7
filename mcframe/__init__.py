"""mcframe: a config-driven plug-in framework for MegaContext language models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mcframe")
except PackageNotFoundError:  # a checkout that nobody installed; run.py says what to do about it
    __version__ = "0+not-installed"
