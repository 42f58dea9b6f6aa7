import pytest

from mcframe.registry.plugins import Registry


@pytest.fixture
def registry_of():
    """Makes a registry of one module and nothing else."""

    def registry(module):
        found = Registry()
        found.register_plugin(module, module.__name__)
        return found

    return registry
