"""The requirements of the two plug-ins; each test is named after its requirement in docs/conformance.md."""

import pytest
from mcframe.testing import GistNetSuite, VariantsSuite


class TestSpectralGistNet(GistNetSuite):
    """With its defaults."""

    @pytest.fixture
    def plugin(self) -> str:
        """Return the name in gin files."""
        return "gistnet.spectral"


class TestOneFrequency(TestSpectralGistNet):
    """With the smallest map."""

    settings = ("gistnet.spectral.frequencies = 1",)


class TestStridedVariants(VariantsSuite):
    """With its defaults."""

    @pytest.fixture
    def plugin(self) -> str:
        """Return the name in gin files."""
        return "variants.strided"
