"""First-party GistNets: oracles, and what their gists depend on in a real node table.

The conformance kit checks the dependencies of single calls (tests/unit/plugins/test_conformance.py).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import BaseShape, GistNet, ModelShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.rope import GaussianRope
from mcframe_plugins.gistnet import ContextualGistNet, MeanGistNet, MultiheadGistNet, TransformerGistNet
from mcframe_plugins.variants import NoVariants

WIDTH = 9
MADE = {"mean": MeanGistNet, "transformer": TransformerGistNet, "multihead": MultiheadGistNet}
MADE |= {"contextual": ContextualGistNet}


def variant(kind: str, **options):
    """Return a name that lists the options, and a factory with odd sizes."""
    name = "-".join([kind, *(f"{key}={value}" for key, value in options.items())])
    fixed = {} if kind == "mean" else {"layers": 1, "heads": 3}
    return name, lambda shape: MADE[kind](shape, **fixed | options)


ISOLATED = dict(
    [
        variant("mean"),
        *(
            variant("transformer", pooling=pooling, head=head, residual=residual)
            for pooling in ("mean", "query", "cls")
            for head in ("linear", "mlp")
            for residual in (True, False)
        ),
        variant("multihead", queries=1, head="linear"),
        variant("multihead", queries=3, head="mlp"),
        variant("multihead", layers=0, queries=2, residual=False),
        variant("multihead", layers=2, heads=9),
        variant("contextual", window=0),
    ]
)
WINDOWED = dict(
    [
        variant("contextual", window=1),
        variant("contextual", window=2, pooling="query", head="linear"),
        variant("contextual", window=1, layers=2, pooling="heads", queries=2, residual=False),
        variant("contextual", window=1, heads=9, from_tokens=False),
        variant("contextual", window=1, layers=2, pooling="query", from_tokens=False),
    ]
)
UNBOUNDED = dict(
    [
        variant("transformer", base_layer=2),
        variant("contextual", base_layer=1, layers=0),
        variant("contextual", base_layer=2, layers=0, pooling="query", from_tokens=False),
        variant("contextual", base_layer=3, window=1, pooling="heads"),
    ]
)
KINDS = ISOLATED | WINDOWED | UNBOUNDED
LEARNED = [kind for kind in KINDS if kind != "mean"]
SHAPES = [(2, 1), (5, 1), (5, 3), (7, 4)]  # K and G, odd sizes among them


def build(kind: str, block_size: int = 5, slots: int = 1, levels: int = 3) -> tuple[GistNet, ContextTree]:
    torch.manual_seed(0)
    tree = ContextTree(block_size**3, block_size, levels=levels, slots=slots, tail=0)
    return KINDS[kind](ModelShape(WIDTH, tree)), tree


def children_of(gistnet: GistNet, tree: ContextTree, lod: int) -> int:
    """Return the number of children of a node."""
    return tree.span(lod) if gistnet.reads_tokens else tree.block_size * tree.slots_at(lod - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_gists_of_a_node_table_depend_on_no_later_token(kind):
    """From tokens through the base model to the node table of LOD1 and LOD2; states of the base model among them."""
    torch.manual_seed(0)
    tree = ContextTree(27, 3, levels=2, tail=0)
    gpt = GPT(BaseShape(tree, 11, GaussianRope), depth=3, width=18, heads=3)
    for block in gpt.blocks:  # they start at zero, and then states are independent of their neighbours
        torch.nn.init.normal_(block.attention.out.weight, std=0.5)
    gistnet = KINDS[kind](ModelShape(18, tree))
    model = MegaContextModel(gpt, gistnet, None, NoVariants(tree), tree).eval()
    tokens = torch.randint(0, 11, (1, tree.window))
    before = model.encode(tokens)[0][0]
    for token in range(0, tree.window, 4):
        other = tokens.clone()
        other[0, token] = (other[0, token] + 1) % 11
        moved = (model.encode(other)[0][0] - before).abs().amax(dim=-1) > 1e-7
        for lod in (1, 2):
            own = token // tree.span(lod)
            of_lod = moved[tree.offset(lod) : tree.offset(lod + 1)].tolist()
            assert not any(of_lod[:own])
            assert of_lod[own]
            if gistnet.reads_layer and token == 0:
                assert all(of_lod)  # its children have read everything to their left
            if lod == 1 and gistnet.context_blocks is not None:
                assert not any(of_lod[own + gistnet.context_blocks + 1 :])


def test_declarations():
    assert {build(kind)[0].context_blocks for kind in ISOLATED} == {0}
    assert {build(kind)[0].reads_layer for kind in ISOLATED | WINDOWED} == {0}
    assert [build(kind)[0].context_blocks for kind in WINDOWED] == [1, 2, 2, 1, 2]
    assert {build(kind)[0].context_blocks for kind in UNBOUNDED} == {None}
    assert [build(kind)[0].reads_layer for kind in UNBOUNDED] == [2, 1, 2, 3]


@pytest.mark.parametrize("kind", ISOLATED | WINDOWED)
@pytest.mark.parametrize("lod", [1, 2])
def test_gist_does_not_depend_on_the_position_of_its_node(kind, lod):
    """Positions are relative, so that the length of the window is not fixed."""
    gistnet, tree = build(kind)
    children = torch.randn(2, 7, children_of(gistnet, tree, lod), WIDTH)
    first = 6 - gistnet.context_blocks
    alone = gistnet(children[1:, first:], lod)[:, -1]
    torch.testing.assert_close(alone, gistnet(children, lod)[1:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in LEARNED if "layers=0" not in kind])
def test_learned_gist_depends_on_order_and_level(kind):
    gistnet, _ = build(kind)
    children = torch.randn(1, 1, 5, WIDTH)
    gist = gistnet(children, 1)
    assert (gistnet(children.flip(2), 1) - gist).abs().max() > 1e-6
    assert (gistnet(children, 2) - gist).abs().max() > 1e-6


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("slots", [2, 3])
def test_slots_of_a_gist_differ(kind, slots):
    gistnet, _ = build(kind, 5, slots)
    gist = gistnet(torch.randn(1, 1, 5, WIDTH), 1)[0, 0]
    for one in range(slots):
        for other in range(one):
            assert (gist[one] - gist[other]).abs().max() > 1e-4


# ---- mean ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("block_size", "slots"), SHAPES)
def test_mean_of_each_slot(block_size, slots):
    gistnet, _ = build("mean", block_size, slots)
    children = torch.randn(1, 1, block_size, WIDTH)
    expected = []
    for slot in range(slots):
        members = [children[0, 0, c] for c in range(block_size) if c * slots // block_size == slot]
        expected.append(sum(members) / len(members))
    torch.testing.assert_close(gistnet(children, 1)[0, 0], torch.stack(expected))


@pytest.mark.parametrize(("block_size", "slots"), SHAPES)
def test_means_of_means_are_means(block_size, slots):
    """Slots of LOD1 that stand for unequal numbers of tokens count by them."""
    gistnet, _ = build("mean", block_size, slots)
    tokens, span = torch.randn(block_size**2, WIDTH), block_size**2
    below = gistnet(tokens.view(1, block_size, block_size, WIDTH), 1)
    found = gistnet(below.view(1, 1, -1, WIDTH), 2)[0, 0]
    for slot in range(slots):
        expected = tokens[[t for t in range(span) if t * slots // span == slot]].mean(dim=0)
        torch.testing.assert_close(found[slot], expected)


# ---- oracles ------------------------------------------------------------------------------------
FEW = settings(max_examples=8, deadline=None, derandomize=True)


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """Return the vector of one head rotated by its position, pair by pair."""
    half, x = len(x) // 2, x.clone()
    for i in range(half):
        angle = torch.tensor(position * 1000.0 ** (-i / half), dtype=x.dtype)
        first, second = x[i].clone(), x[i + half].clone()
        x[i] = first * angle.cos() - second * angle.sin()
        x[i + half] = first * angle.sin() + second * angle.cos()
    return x


def softmax_read(query, keys, values):
    """Return the read of one query: a weighted sum of values."""
    logits = [(query * key).sum() / len(query) ** 0.5 for key in keys]
    weights = torch.stack([logit.exp() for logit in logits])
    weights = weights / weights.sum()
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def slow_layer(layer, states, visible):
    """Return the states after a layer, child by child; visible[q] lists the positions that q may read."""
    after = []
    for q, state in enumerate(states):
        reads = []
        for head in range(layer.heads):
            width = len(state) // layer.heads
            mine = slice(head * width, (head + 1) * width)
            keys = [turned(normed(layer.key(normed(states[k]))[mine]), k) for k in visible[q]]
            values = [layer.value(normed(states[k]))[mine] for k in visible[q]]
            reads.append(softmax_read(turned(normed(layer.query(normed(state))[mine]), q), keys, values))
        x = state + layer.out(torch.cat(reads))
        after.append(x + layer.down(layer.up(normed(x)).relu() ** 2))
    return after


@FEW
@given(
    block_size=st.integers(2, 5),
    nodes=st.integers(1, 4),
    window=st.integers(0, 2),
    layers=st.integers(1, 2),
    lod=st.integers(1, 2),
    from_tokens=st.booleans(),
    slots=st.integers(1, 2),
    seed=st.integers(0, 2**32),
)
def test_contextual_equals_its_oracle(block_size, nodes, window, layers, lod, from_tokens, slots, seed):
    """Block by block, child by child, with the list of blocks that each child may read."""
    slots = min(slots, block_size - 1)
    torch.manual_seed(seed)
    tree = ContextTree(block_size**2, block_size, levels=2, slots=slots, tail=0)
    gistnet = ContextualGistNet(
        ModelShape(6, tree), layers=layers, heads=2, window=window, from_tokens=from_tokens
    ).double()
    count = children_of(gistnet, tree, lod)
    nodes = nodes if lod == 1 else min(nodes, 2)
    children = torch.randn(1, nodes, count, 6).double()
    flat = list(children[0].flatten(0, 1))
    block = block_size if from_tokens else count
    states = [normed(x) + gistnet.child_embed[c % block] + gistnet.lod_embed[lod - 1] for c, x in enumerate(flat)]
    visible = []
    for q in range(len(flat)):
        allowed = range(max(0, q // block - window), q // block + 1)
        visible.append([b * block + c for b in allowed for c in range(block)])
    for layer in gistnet.layers:
        states = slow_layer(layer, states, visible)
    found = gistnet(children, lod)
    for node in range(nodes):
        for slot in range(slots):
            members = [c for c in range(count) if c * slots // count == slot]
            state = sum(states[node * count + c] for c in members) / len(members)
            plain = sum(flat[node * count + c] for c in members) / len(members)
            expected = gistnet.head(normed(state)) + normed(plain)
            torch.testing.assert_close(found[0, node, slot], expected, atol=1e-5, rtol=1e-4)


@FEW
@given(
    count=st.integers(1, 7),
    heads=st.sampled_from([1, 2, 3, 6]),
    slots=st.integers(1, 3),
    queries=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_multihead_pooling_equals_its_oracle(count, heads, slots, queries, seed):
    """Head by head, query by query; then the map of the reads side by side."""
    torch.manual_seed(seed)
    tree = ContextTree(7, 7, slots=slots, tail=0)
    gistnet = MultiheadGistNet(ModelShape(6, tree), heads=heads, queries=queries, layers=0, residual=False)
    gistnet = gistnet.double()
    pool = gistnet.pool
    children = torch.randn(1, 2, count, 6).double()
    found = gistnet(children, 1)
    width = 6 // heads
    for node in range(2):
        states = [normed(x) + gistnet.child_embed[c] + gistnet.lod_embed[0] for c, x in enumerate(children[0, node])]
        for slot in range(slots):
            reads = []
            for query in range(queries):
                for head in range(heads):
                    mine = slice(head * width, (head + 1) * width)
                    keys = [normed(pool.key(normed(state))[mine]) for state in states]
                    values = [pool.value(normed(state))[mine] for state in states]
                    reads.append(softmax_read(pool.query_embed[head, slot * queries + query], keys, values))
            expected = gistnet.head(normed(torch.cat(reads)))
            torch.testing.assert_close(found[0, node, slot], expected, atol=1e-8, rtol=1e-6)


def test_heads_pool_the_states_of_the_encoder():
    """contextual's pooling = 'heads' is that of multihead after its own encoder."""
    tree = ContextTree(25, 5, tail=0)
    torch.manual_seed(0)
    gistnet = ContextualGistNet(ModelShape(6, tree), heads=2, pooling="heads", queries=3, residual=False)
    children = torch.randn(2, 3, 5, 6)
    states = gistnet._encode(children.flatten(1, 2), 1, 5).reshape(6, 5, 6)
    expected = gistnet.head(normed(gistnet.pool(states))).view(2, 3, 1, 6)
    torch.testing.assert_close(gistnet(children, 1), expected)
