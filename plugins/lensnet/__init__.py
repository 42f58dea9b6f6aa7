"""LensNets: a score in [-1, 1] for every entry before the cursor."""

from mcframe_plugins.folder import register_folder

mcframe_api = "0.1"
register_plugins = register_folder(globals())
