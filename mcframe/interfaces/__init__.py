"""What a plug-in implements, a module a group of kinds. Plug-ins import all of it from `mcframe.hookspecs`."""
