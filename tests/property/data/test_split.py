import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcframe.data.split import check_share, documents_of, is_validation
from mcframe.errors import UserError


@given(st.lists(st.text(st.characters()), max_size=30), st.floats(0, 1))
def test_every_document_is_in_one_split_and_duplicates_go_together(texts, share):
    train = list(documents_of(texts + texts, "train", share))
    validation = list(documents_of(texts + texts, "validation", share))
    assert sorted(train + validation) == sorted(texts + texts)
    assert not set(train) & set(validation)


def test_the_share_is_met_and_growing_it_only_moves_documents_into_validation():
    texts = [str(i) for i in range(20_000)]
    held_out = {share: {t for t in texts if is_validation(t, share)} for share in (0, 0.01, 0.1, 0.5, 1)}
    assert [len(held_out[share]) for share in (0, 1)] == [0, 20_000]
    assert len(held_out[0.1]) == pytest.approx(2_000, rel=0.1)
    assert held_out[0.01] < held_out[0.1] < held_out[0.5]


def test_the_split_is_the_same_in_every_version():
    assert [i for i in range(40) if is_validation(f"document {i}", 0.2)] == [5, 9, 14, 15, 17, 23, 32, 37]


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="validation share") as caught:
        check_share(share)
    assert "data.validation_fraction" in caught.value.remedy
