"""Plug-ins: discovery, loading, checks of what they return, attribution of their errors."""
