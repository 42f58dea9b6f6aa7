import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.hookspecs import ModelShape
from mcframe.modeling.node_table import build_node_table
from mcframe_plugins.gistnet import MeanGistNet, TransformerGistNet
from tests.support import oracle
from tests.support.generators import SOME, geometry_of, trees
from tests.support.modeling_builders import randomise


@SOME
@given(trees(max_window=40), st.sampled_from(["mean", "transformer"]))
def test_every_row_is_what_one_node_alone_gives(tree, kind):
    tree = geometry_of(tree)
    shape = ModelShape(8, tree)
    gistnet = MeanGistNet(shape) if kind == "mean" else TransformerGistNet(shape, layers=1, heads=2)
    randomise(gistnet, 0)
    tokens = torch.randn(2, tree.window, 8, generator=torch.Generator().manual_seed(1))
    table = build_node_table(tokens, gistnet, tree)
    rows = oracle.table_rows(tree)
    assert table.shape == (2, len(rows), 8)
    for sequence in range(2):
        known = {}
        for (lod, start, slot), row in rows.items():
            if lod == 0:
                known[lod, start, slot] = tokens[sequence, start]
            elif slot == 0:
                step, slots = tree.block_size ** (lod - 1), tree.slots if lod > 1 else 1
                starts = range(start, start + tree.block_size**lod, step)
                children = torch.stack([known[lod - 1, s, i] for s in starts for i in range(slots)])
                for i, gist in enumerate(gistnet(children[None, None], lod)[0, 0]):
                    known[lod, start, i] = gist
            torch.testing.assert_close(table[sequence, row], known[lod, start, slot], atol=1e-5, rtol=1e-4)


def test_one_call_a_level_level_1_first():
    calls = []

    class Spy(MeanGistNet):
        def forward(self, children, lod):
            calls.append((lod, tuple(children.shape)))
            return super().forward(children, lod)

    tree = oracle.Tree(window=70, block_size=4, levels=3, slots=2, tail=0, sink=0)
    tree = geometry_of(tree)
    build_node_table(torch.randn(5, 70, 6), Spy(ModelShape(6, tree)), tree)
    assert calls == [(1, (5, 17, 4, 6)), (2, (5, 4, 8, 6)), (3, (5, 1, 8, 6))]
