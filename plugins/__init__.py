"""First-party plug-ins of mcframe. They use nothing but the public API, as anybody's would.

One folder a kind, one file an implementation, one entry point a kind (see pyproject.toml).
"""
