"""What `hookspecs.GistNet` asks, of every GistNet that comes with the framework."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.hookspecs import GistNet, ModelShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe_plugins.gistnet import ContextualGistNet, MeanGistNet, MultiheadGistNet, TransformerGistNet
from mcframe_plugins.variants import NoVariants

WIDTH = 9
MADE = {"mean": MeanGistNet, "transformer": TransformerGistNet, "multihead": MultiheadGistNet}
MADE |= {"contextual": ContextualGistNet}


def spelled(kind: str, **options):
    """A factory with odd sizes, under a name that says which options it has."""
    name = "-".join([kind, *(f"{key}={value}" for key, value in options.items())])
    fixed = {} if kind == "mean" else {"layers": 1, "heads": 3}
    return name, lambda shape: MADE[kind](shape, **fixed | options)


ISOLATED = dict(
    [
        spelled("mean"),
        *(
            spelled("transformer", pooling=pooling, head=head, residual=residual)
            for pooling in ("mean", "query", "cls")
            for head in ("linear", "mlp")
            for residual in (True, False)
        ),
        spelled("multihead", queries=1, head="linear"),
        spelled("multihead", queries=3, head="mlp"),
        spelled("multihead", layers=0, queries=2, residual=False),
        spelled("multihead", layers=2, heads=9),
        spelled("contextual", window=0),
    ]
)
WINDOWED = dict(
    [
        spelled("contextual", window=1),
        spelled("contextual", window=2, pooling="query", head="linear"),
        spelled("contextual", window=1, layers=2, pooling="heads", queries=2, residual=False),
        spelled("contextual", window=1, heads=9, from_tokens=False),
        spelled("contextual", window=1, layers=2, pooling="query", from_tokens=False),
    ]
)
UNBOUNDED = dict(
    [
        spelled("transformer", base_layer=2),
        spelled("contextual", base_layer=1, layers=0),
        spelled("contextual", base_layer=2, layers=0, pooling="query", from_tokens=False),
        spelled("contextual", base_layer=3, window=1, pooling="heads"),
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
    """Children of a node, as the framework counts them."""
    return tree.span(lod) if gistnet.reads_tokens else tree.block_size * tree.slots_at(lod - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [2, 5])
@pytest.mark.parametrize("lod", [1, 2])
def test_a_gist_reads_what_is_declared_and_nothing_else(kind, block_size, lod):
    """Node by node, both by moving it and by the gradient; another sequence never matters."""
    gistnet, tree = build(kind, block_size)
    count, nodes = children_of(gistnet, tree, lod), 6
    children = torch.randn(2, nodes, count, WIDTH, requires_grad=True)
    gists = gistnet(children, lod)
    declared = nodes if gistnet.context_blocks is None else gistnet.context_blocks
    for source in range(nodes):
        other = children.detach().clone()
        other[0, source] += 1.0 + torch.randn(count, WIDTH)
        moved = (gistnet(other, lod) - gists).abs().amax(dim=(2, 3)) > 1e-6
        assert not moved[1].any()
        for node in range(nodes):
            if moved[0, node]:
                assert source <= node <= source + declared
        assert moved[0, source]

    for node in range(nodes):
        weighed = (gists[0, node] * torch.randn(1, WIDTH)).sum()
        (gradient,) = torch.autograd.grad(weighed, children, retain_graph=True)
        reached = gradient.abs().amax(dim=-1) > 0
        assert reached[0, node].all()  # every child counts
        outside = [n for n in range(nodes) if not node - declared <= n <= node]
        assert not reached[0, outside].any()
        assert not reached[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_gist_of_a_real_table_knows_what_follows_it(kind):
    """From tokens through the base model to the node table of LOD1 and LOD2; states of the base model among them."""
    torch.manual_seed(0)
    tree = ContextTree(27, 3, levels=2, tail=0)
    gpt = GPT(tree, 11, depth=3, width=18, heads=3)
    for block in gpt.blocks:  # they start at zero, and then no state knows its neighbours
        torch.nn.init.normal_(block.attention.out.weight, std=0.5)
    gistnet = KINDS[kind](ModelShape(18, tree))
    model = MegaContextModel(gpt, gistnet, None, NoVariants(tree), tree).eval()
    tokens = torch.randint(0, 11, (1, tree.window))
    before = model.encode(tokens)[0][0]
    for place in range(tree.window):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % 11
        moved = (model.encode(other)[0][0] - before).abs().amax(dim=-1) > 1e-7
        for lod in (1, 2):
            own = place // tree.span(lod)
            of_lod = moved[tree.offset(lod) : tree.offset(lod + 1)].tolist()
            assert not any(of_lod[:own])
            assert of_lod[own]
            if gistnet.reads_layer and place == 0:
                assert all(of_lod)  # its children have read everything to their left
            if lod == 1 and gistnet.context_blocks is not None:
                assert not any(of_lod[own + gistnet.context_blocks + 1 :])


def test_what_is_declared():
    assert {build(kind)[0].context_blocks for kind in ISOLATED} == {0}
    assert {build(kind)[0].reads_layer for kind in ISOLATED | WINDOWED} == {0}
    assert [build(kind)[0].context_blocks for kind in WINDOWED] == [1, 2, 2, 1, 2]
    assert {build(kind)[0].context_blocks for kind in UNBOUNDED} == {None}
    assert [build(kind)[0].reads_layer for kind in UNBOUNDED] == [2, 1, 2, 3]


@pytest.mark.parametrize("kind", ISOLATED | WINDOWED)
@pytest.mark.parametrize("lod", [1, 2])
def test_a_node_is_the_same_wherever_it_stands(kind, lod):
    """Places are relative, so that the window's length is not fixed: a node and what it reads, moved."""
    gistnet, tree = build(kind)
    children = torch.randn(2, 7, children_of(gistnet, tree, lod), WIDTH)
    first = 6 - gistnet.context_blocks
    alone = gistnet(children[1:, first:], lod)[:, -1]
    torch.testing.assert_close(alone, gistnet(children, lod)[1:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in LEARNED if "layers=0" not in kind])
def test_what_is_learned_knows_order_and_level(kind):
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
def test_mean_is_the_mean_of_each_stretch(block_size, slots):
    gistnet, _ = build("mean", block_size, slots)
    children = torch.randn(1, 1, block_size, WIDTH)
    wanted = []
    for slot in range(slots):
        members = [children[0, 0, c] for c in range(block_size) if c * slots // block_size == slot]
        wanted.append(sum(members) / len(members))
    torch.testing.assert_close(gistnet(children, 1)[0, 0], torch.stack(wanted))


def test_means_of_means_are_means():
    gistnet, _ = build("mean")
    tokens = torch.randn(1, 25, WIDTH)
    below = gistnet(tokens.view(1, 5, 5, WIDTH), 1)
    torch.testing.assert_close(gistnet(below.view(1, 1, 5, WIDTH), 2)[0, 0, 0], tokens[0].mean(dim=0))


# ---- oracles ------------------------------------------------------------------------------------
FEW = settings(max_examples=12, deadline=None, derandomize=True)


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def turned(x: torch.Tensor, place: int) -> torch.Tensor:
    """One head's vector, rotated by its place, pair by pair."""
    half, x = len(x) // 2, x.clone()
    for i in range(half):
        angle = torch.tensor(place * 1000.0 ** (-i / half), dtype=x.dtype)
        first, second = x[i].clone(), x[i + half].clone()
        x[i] = first * angle.cos() - second * angle.sin()
        x[i + half] = first * angle.sin() + second * angle.cos()
    return x


def softmax_read(query, keys, values):
    """What one query reads of a few keys: a weighted sum, written out."""
    logits = [(query * key).sum() / len(query) ** 0.5 for key in keys]
    weights = torch.stack([logit.exp() for logit in logits])
    weights = weights / weights.sum()
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def slow_layer(layer, states, visible):
    """A layer over a list of states, child by child; visible[q] lists the places that q may read."""
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
def test_contextual_is_its_oracle(block_size, nodes, window, layers, lod, from_tokens, slots, seed):
    """Block by block, child by child, with the list of blocks that each may read."""
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
            wanted = gistnet.head(normed(state)) + normed(plain)
            torch.testing.assert_close(found[0, node, slot], wanted, atol=1e-5, rtol=1e-4)


@FEW
@given(
    count=st.integers(1, 7),
    heads=st.sampled_from([1, 2, 3, 6]),
    slots=st.integers(1, 3),
    queries=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_multihead_pooling_is_its_oracle(count, heads, slots, queries, seed):
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
            wanted = gistnet.head(normed(torch.cat(reads)))
            torch.testing.assert_close(found[0, node, slot], wanted, atol=1e-8, rtol=1e-6)


def test_heads_pool_from_the_encoders_states():
    """contextual's pooling = 'heads' is multihead's, behind its own encoder."""
    tree = ContextTree(25, 5, tail=0)
    torch.manual_seed(0)
    gistnet = ContextualGistNet(ModelShape(6, tree), heads=2, pooling="heads", queries=3, residual=False)
    children = torch.randn(2, 3, 5, 6)
    states = gistnet._encode(children.flatten(1, 2), 1, 5).reshape(6, 5, 6)
    wanted = gistnet.head(normed(gistnet.pool(states))).view(2, 3, 1, 6)
    torch.testing.assert_close(gistnet(children, 1), wanted)


# ---- what is refused -------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["transformer", "multihead", "contextual"])
def test_heads_that_do_not_divide_the_width_are_refused(kind):
    with pytest.raises(UserError, match=rf"gistnet\.{kind}\.heads = 4"):
        MADE[kind](ModelShape(WIDTH, ContextTree(25, 5, tail=0)), heads=4)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("transformer", {"base_layer": -1}, "transformer.base_layer is -1"),
        ("multihead", {"queries": 0}, "multihead.queries is 0"),
        ("multihead", {"layers": -1}, "multihead.layers is -1"),
        ("contextual", {"window": -1}, "contextual.window is -1"),
        ("contextual", {"queries": 0}, "contextual.queries is 0"),
        ("contextual", {"base_layer": -2}, "contextual.base_layer is -2"),
        ("contextual", {"layers": -1}, "contextual.layers is -1"),
        ("contextual", {"layers": 0}, "contextual.layers is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, options, named):
    with pytest.raises(UserError, match=named):
        MADE[kind](ModelShape(8, ContextTree(25, 5, tail=0)), **options)
