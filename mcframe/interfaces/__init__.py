"""Interfaces of plug-ins, one module a group of kinds. Plug-ins import all of them from `mcframe.hookspecs`."""
