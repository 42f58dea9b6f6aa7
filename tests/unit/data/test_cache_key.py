"""The key of the token cache: other plug-ins, versions or settings never read the same tokens."""

import textwrap

import numpy as np
import pytest

from mcframe.config.run_config import load_run_config
from mcframe.data import cache
from mcframe.data.cache import cache_key
from mcframe.data.token_file import token_file
from mcframe.registry.discovery import PluginOptions

CODE = """
    from mcframe.hookspecs import TextSource, hookimpl


    class Mine(TextSource):
        identity = "mine-1"

        def __init__(self, *, word: str = "one"):
            self.word = word

        def documents(self, epoch=0):
            yield from (f"{self.word} WORD {n}" for n in range(9))


    @hookimpl
    def register_plugins(register):
        register("mine", Mine)
"""


def source_of(folder, code=CODE, *bindings):
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(textwrap.dedent(code))
    (folder / "run.gin").write_text("include 'smoke.gin'\nrun.text = @text.mine\n")
    options = PluginOptions((str(folder / "mine.py"),), (), False)
    return load_run_config([folder / "run.gin"], bindings, options)


def tokens(loaded):
    run_config = loaded.run_config
    return np.load(token_file(run_config.text(), run_config.tokenizer(), split="train", fraction=0.0).path).tobytes()


def test_code_and_settings_are_part_of_the_key(tmp_path):
    first = tokens(source_of(tmp_path / "a"))
    assert tokens(source_of(tmp_path / "b")) == first  # a copy elsewhere, as a run directory holds it
    assert tokens(source_of(tmp_path / "c", CODE.replace("WORD", "word"))) != first
    assert tokens(source_of(tmp_path / "d", CODE, "text.mine.word = 'two'")) != first
    assert len(list((cache.cache_dir() / "tokens").glob("*.npy"))) == 3


def test_a_copy_in_another_folder_has_the_same_key(tmp_path):
    assert cache_key(source_of(tmp_path / "a").run_config.text()) == cache_key(
        source_of(tmp_path / "b").run_config.text()
    )


def test_sources_of_a_mixture_have_keys_of_their_own(tmp_path):
    mixture = ("run.text = @text.mixture", "text.mixture.sources = [@a/text.mine, @b/text.mine]")
    keys = [
        cache_key(source_of(tmp_path / "a", CODE, *mixture, f"b/text.mine.word = '{word}'").run_config.text())
        for word in ("one", "two")
    ]
    assert len(set(keys)) == 2


@pytest.mark.parametrize("changed", ["version", "distribution"])
def test_package_and_version_are_part_of_the_key(tmp_path, monkeypatch, changed):
    source = source_of(tmp_path / "a").run_config.text()
    package = {"version": "1.0", "distribution": "lab"}

    def key():
        cache._origin.cache_clear()
        top = type(source).__module__
        monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {top: [package["distribution"]]})
        monkeypatch.setattr("importlib.metadata.version", lambda _: package["version"])
        return cache_key(source)

    before = key()
    assert key() == before
    package[changed] = "2.0"
    assert key() != before
    cache._origin.cache_clear()
