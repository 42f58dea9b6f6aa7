import os

import pytest

# No test may use the network. `datasets` reads this variable once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Use a cache folder of the test's own, and return it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MCFRAME_CACHE", str(folder))
    return folder
