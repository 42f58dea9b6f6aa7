"""Oracles, builders and fixtures that several tests share."""
