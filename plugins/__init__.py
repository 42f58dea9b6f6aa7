"""First-party plug-ins of mcframe. They use only the public API, like third-party plug-ins.

One folder a kind, one file an implementation, one entry point a kind (see pyproject.toml). A new implementation is one
new module of its folder: `folder` registers it under the name of the module.
"""
