"""Every plug-in that comes with mcframe, through the classes that anybody else's tests use."""

import pytest

from mcframe.recipe import all_plugins
from mcframe.testing import AllocatorContract, GistNetContract, LensNetContract, VariantsContract


def every(kind):
    return pytest.fixture(params=[f"{kind}.{name}" for name in all_plugins().implementations[kind]])


class TestGistNets(GistNetContract):
    @every("gistnet")
    def plugin(self, request):
        return request.param


class TestLensNets(LensNetContract):
    @every("lensnet")
    def plugin(self, request):
        return request.param


class TestAllocators(AllocatorContract):
    @every("allocator")
    def plugin(self, request):
        return request.param


class TestVariants(VariantsContract):
    @every("variants")
    def plugin(self, request):
        return request.param
