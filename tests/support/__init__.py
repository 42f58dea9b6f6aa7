"""Oracles, builders and fixtures for tests of several files."""
