"""Reading entries in parts, with their keys and values kept, equals reading them at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.modeling_builders import TREE, build_gpt, mixed_context


def read_in_parts(gpt, embeddings, lod, rotation, cuts):
    """Return the states of entries that are read from cut to cut; a negative cut forgets so many entries first."""
    cache, done = gpt.kv_cache(embeddings.shape[1]), []
    states = torch.zeros_like(embeddings)
    for cut in cuts:
        if cut < 0:
            cache.truncate(max(0, cache.length + cut))
            continue
        first, last = cache.length, min(cache.length + cut, embeddings.shape[1])
        if last > first:
            part = tuple(each[..., first:last, :] for each in rotation)
            states[:, first:last] = gpt.extend(embeddings[:, first:last], lod[:, first:last], part, cache)
        done.append(last)
    return states[:, : cache.length], cache.length


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 12) | st.integers(-6, -1), min_size=1, max_size=10),
    st.sampled_from([None, -1.5]),
    st.integers(0, 2),
)
@torch.no_grad()
def test_parts_equal_the_whole(cuts, bias, row):
    gpt, context = build_gpt(TREE, gist_bias=bias), mixed_context()
    length = int(context.valid[row].sum())
    embeddings = torch.randn(3, context.length, gpt.width, generator=torch.Generator().manual_seed(1))
    expected = gpt.hidden(embeddings, context)[row : row + 1]
    rotation = tuple(each[row : row + 1, :, :length] for each in gpt.positions(context))
    found, read = read_in_parts(
        gpt, embeddings[row : row + 1, :length], context.lod[row : row + 1, :length], rotation, cuts
    )
    torch.testing.assert_close(found, expected[:, :read], atol=1e-5, rtol=1e-5)


def test_more_entries_than_the_capacity_are_refused():
    gpt, context = build_gpt(TREE), mixed_context(1)
    embeddings, cache = torch.zeros(1, context.length, gpt.width), gpt.kv_cache(context.length - 1)
    with pytest.raises(AssertionError, match=f"{context.length} entries exceed the capacity of {context.length - 1}"):
        gpt.extend(embeddings, context.lod, gpt.positions(context), cache)
