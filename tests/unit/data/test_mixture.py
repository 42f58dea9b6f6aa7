"""A mixture draws documents by weight, the same in every process, and ends with the first exhausted source."""

import itertools

import pytest

from mcframe.config.run_config import load_run_config
from mcframe.data.mixture import Mixture
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource
from mcframe.registry.checks import ContractError


class Named(TextSource):
    def __init__(self, name, count=10_000, streaming=False):
        self.name, self.count, self.streaming = name, count, streaming

    @property
    def identity(self):
        return f"{self.name}-{self.count}"

    def documents(self, epoch=0):
        return (f"{self.name} {epoch} {number}" for number in range(self.count))


def mixture(*sources, **settings):
    return Mixture(sources=[lambda source=source: source for source in sources], **settings)


def names(documents):
    return [document.split()[0] for document in documents]


@pytest.mark.parametrize(("weights", "fraction"), [((3, 1), 1 / 4), (None, 1 / 2)])
def test_weights_are_fractions_of_documents_and_each_source_keeps_its_order(weights, fraction):
    documents = list(itertools.islice(mixture(Named("a"), Named("b"), weights=weights).documents(2), 4000))
    assert names(documents).count("b") / 4000 == pytest.approx(fraction, abs=0.03)
    for name in "ab":
        own = [document for document in documents if document.startswith(name)]
        assert own == [f"{name} 2 {number}" for number in range(len(own))]


def test_the_order_is_a_function_of_seed_and_epoch():
    first = names(itertools.islice(mixture(Named("a"), Named("b")).documents(), 64))
    assert names(itertools.islice(mixture(Named("a"), Named("b")).documents(), 64)) == first
    assert names(itertools.islice(mixture(Named("a"), Named("b")).documents(1), 64)) != first
    assert names(itertools.islice(mixture(Named("a"), Named("b"), seed=1).documents(), 64)) != first
    assert "".join(first[:16]) == "bbbabbabbbbbabba"


def test_an_epoch_ends_with_the_first_exhausted_source():
    drawn = names(mixture(Named("a"), Named("b", 5)).documents())
    assert drawn.count("b") == 5
    complete = names(itertools.islice(mixture(Named("a"), Named("b")).documents(), len(drawn) + 1))
    assert complete[:-1] == drawn
    assert complete[-1] == "b"  # the draw that found nothing


def test_the_identity_changes_with_sources_weights_and_seed():
    same = [mixture(Named("a"), Named("b")), mixture(Named("a"), Named("b"), weights=(1.0, 1))]
    others = [
        mixture(Named("b"), Named("a")),
        mixture(Named("a"), Named("b", 9)),
        mixture(Named("a"), Named("b"), weights=(1, 2)),
        mixture(Named("a"), Named("b"), seed=1),
    ]
    assert len({each.identity for each in same}) == 1
    assert len({each.identity for each in [*same, *others]}) == 5


def test_it_streams_if_a_source_does():
    assert not mixture(Named("a"), Named("b")).streaming
    assert mixture(Named("a"), Named("b", streaming=True)).streaming


def test_documents_of_every_source_are_checked():
    broken = Named("broken")
    broken.documents = lambda epoch=0: iter([b"bytes"])
    with pytest.raises(ContractError, match=r"Named: documents: expected texts \(str\), got a value of type bytes"):
        list(mixture(broken).documents())


def test_weights_must_fit_the_sources():
    with pytest.raises(UserError, match=r"text\.mixture\.weights: expected"):
        mixture(Named("a"), Named("b"), weights=(1.0,))


def test_a_source_must_be_a_text_source():
    with pytest.raises(UserError, match=r"text\.mixture\.sources: expected .* got a value of type str"):
        Mixture(sources=[str])


def test_scopes_give_each_source_its_settings(smoke, tmp_path):
    for name in ("prose", "code"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number:02}.txt").write_text(f"{name} {number}")
    settings = (
        "run.text = @text.mixture",
        "text.mixture.sources = [@prose/text.local_files, @code/text.local_files]",
        "text.mixture.weights = (0.75, 0.25)",
        f"prose/text.local_files.paths = {str(tmp_path / 'prose')!r}",
        f"code/text.local_files.paths = {str(tmp_path / 'code')!r}",
    )
    source = load_run_config([smoke], settings).run_config.text()
    drawn = list(itertools.islice(source.documents(), 8))
    assert {document.split()[0] for document in drawn} == {"prose", "code"}
