"""GistNets: maps of K children to one gist of G slots."""

from mcframe_plugins.folder import register_folder

mcframe_api = "0.1"
register_plugins = register_folder(globals())
