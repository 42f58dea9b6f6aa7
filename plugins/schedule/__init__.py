"""Schedules: factors on the learning rate, step by step."""

from mcframe_plugins.folder import register_folder

mcframe_api = "0.1"
register_plugins = register_folder(globals())
