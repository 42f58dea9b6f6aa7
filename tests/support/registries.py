import pytest

from mcframe.registry.plugins import Registry


@pytest.fixture
def registry_of():
    """Return a function that makes a registry of one module."""

    def registry(module):
        found = Registry()
        found.register_plugin(module, module.__name__)
        return found

    return registry
