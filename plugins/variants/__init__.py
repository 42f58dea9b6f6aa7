"""Variant strategies: choices of the working contexts that training compares."""

from mcframe_plugins.folder import register_folder

mcframe_api = "0.1"
register_plugins = register_folder(globals())
