"""Everything that mcframe asks of the two; each check is named after its clause in docs/conformance.md."""

import pytest
from mcframe.testing import GistNetContract, VariantsContract


class TestSpectralGistNet(GistNetContract):
    """As it comes."""

    @pytest.fixture
    def plugin(self) -> str:
        """The name that gin files use."""
        return "gistnet.spectral"


class TestOneFrequency(GistNetContract):
    """With the smallest map there is."""

    settings = ("gistnet.spectral.frequencies = 1",)

    @pytest.fixture
    def plugin(self) -> str:
        """The name that gin files use."""
        return "gistnet.spectral"


class TestStridedVariants(VariantsContract):
    """As they come."""

    @pytest.fixture
    def plugin(self) -> str:
        """The name that gin files use."""
        return "variants.strided"
