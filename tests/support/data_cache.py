import os

import pytest

# `datasets` reads this once, when it is first imported: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MCFRAME_CACHE", str(folder))
    return folder
