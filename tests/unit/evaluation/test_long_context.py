"""The evaluation long_context: each arm reads its own tokens, within one budget."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from mcframe.context.working_context import build_context
from mcframe.data.synthetic.needle import Needle
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.evaluation.history_arms import HistoryArms, retrieved
from mcframe.evaluation.long_context import COSTS, LongContext
from mcframe.interfaces.evaluation import ARMS
from mcframe.runtime.entries import EntryReader
from mcframe.runtime.gist_encoder import GistEncoder, history_shape
from mcframe.runtime.history import History
from mcframe.runtime.session_config import SessionDefaults
from mcframe_plugins.allocator import GreedyAllocator
from tests.support.evaluation_builders import build_eval_model
from tests.support.modeling_builders import VOCABULARY
from tests.support.runtime_models import small_model

CURSOR, TAIL = 200, 9


def words(tokens):
    return [str(token) for token in tokens.tolist()]


@pytest.fixture
def model():
    return small_model(3, gistnet="transformer", lensnet="transformer", levels=2, window=60)


@pytest.fixture
def config(model):
    return SessionDefaults(budget=48, sink=1, tail=6, refocus_every=6).config(model.tree)


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY - 1, (CURSOR + TAIL + 1,), generator=torch.Generator().manual_seed(1))


def arms_of(model, config):
    shape = history_shape(model, VOCABULARY)
    return HistoryArms(model, GreedyAllocator, config, lambda: History.create(shape), words)


def plain_nll(model, tokens, focus, condition):
    """Return the NLL after the cursor of tokens under a focus, by the path of training."""
    tree = replace(model.tree, window=len(tokens) - 1, tail=TAIL)
    complete = model.__class__(model.gpt, model.gistnet, model.lensnet, model.strategy, tree).eval()
    focus = torch.nn.functional.pad(focus, (0, tree.blocks - focus.shape[1]))
    assert build_context(focus, tree).valid.any()
    return complete.evaluate_focus(tokens[None], focus, condition)[0][0, -TAIL - 1 :]


@pytest.mark.parametrize("drop_gists", [False, True])
def test_arms_with_gists_equal_the_path_of_training(model, tokens, drop_gists):
    """Nothing is dropped from a history of this length. The arm `gists` reads its gists in any case."""
    config = SessionDefaults(budget=100, sink=1, tail=6, refocus_every=6, drop_gists=drop_gists).config(model.tree)
    arms = arms_of(model, config)
    found = arms.score(tokens, CURSOR, torch.tensor([40]), ["gists", "refocus", "oracle"])
    history = History.create(history_shape(model, VOCABULARY))
    history.append(tokens[:-1])
    GistEncoder(model, history).catch_up()
    focuses = {}
    for arm, scores in found.items():
        window = arms._window(arm, CURSOR, EntryReader(model, history), torch.tensor([40]))
        assert window.dropped == 0
        drops = drop_gists and arm != "gists"
        gists = int((window.with_tail(0).lod > 0).sum())
        assert scores.entries == window.entries - drops * gists <= config.target
        expected = plain_nll(model, tokens, window.focus, "drop" if drops else "gist")
        torch.testing.assert_close(scores.nll, expected, atol=1e-4, rtol=1e-4)
        focuses[arm] = window.focus[0].tolist()
    assert focuses["oracle"][40 // 3] == 0
    assert focuses["gists"][40 // 3] > 0
    assert focuses["refocus"] != focuses["gists"]


def test_arms_without_gists_read_the_last_tokens(model, config, tokens):
    found = arms_of(model, config).score(tokens, CURSOR, None, ["recency", "sink_recency", "bm25"])
    kept = {"recency": range(CURSOR - config.target, CURSOR)}
    kept["recency"] = range(CURSOR - found["recency"].entries, CURSOR)
    kept["sink_recency"] = [*range(3), *range(CURSOR - found["sink_recency"].entries + 3, CURSOR)]
    for arm, index in kept.items():
        assert config.target - 3 <= found[arm].entries <= config.target
        text = torch.cat((tokens[list(index)], tokens[CURSOR:]))
        tree = replace(model.tree, window=len(text) - 1, tail=TAIL)
        complete = model.__class__(model.gpt, None, None, model.strategy, tree).eval()
        with torch.no_grad():
            expected = complete.nll(text[None])[0, -TAIL - 1 :]
        torch.testing.assert_close(found[arm].nll, expected, atol=1e-4, rtol=1e-4)
    assert found["bm25"].entries <= config.target


def test_the_full_text_is_an_arm_while_it_fits(model, config, tokens):
    arms = arms_of(model, config)
    assert "full" not in arms.available(CURSOR, evidence=False)
    assert "oracle" not in arms.available(CURSOR, evidence=False)
    assert arms.available(40, evidence=True) == list(ARMS)
    short = tokens[:51]
    found = arms.score(short, 41, None, ["full"])["full"]
    with torch.no_grad():
        expected = model.nll(short[None])[0, -10:]
    torch.testing.assert_close(found.nll, expected, atol=1e-4, rtol=1e-4)


def test_costs_are_those_of_the_entries_and_of_what_is_kept(model, config, tokens):
    arms = arms_of(model, config)
    calls = []
    arms.terms = lambda part: calls.append(time.sleep(0.02)) or words(part)
    found = arms.score(tokens, CURSOR, None, ["sink_recency", "bm25", "gists"])
    head, width = model.gpt.heads * model.gpt.head_width, model.gpt.width
    gists = sum(4 * width * (CURSOR / 3**lod) for lod in (1, 2))
    disk = {"sink_recency": 2 * found["sink_recency"].entries, "bm25": 2 * CURSOR, "gists": round(2 * CURSOR + gists)}
    for arm, scores in found.items():
        assert scores.cache_bytes == 2 * 4 * head * model.gpt.depth * scores.entries
        assert scores.disk_bytes == disk[arm]
        assert min(scores.first_ms, scores.token_ms) > 0
    assert len(calls) == (CURSOR - config.tail) // 3 + 1  # the blocks before the tail, and the query
    assert found["bm25"].first_ms > 20 * len(calls)


def test_bm25_selects_the_blocks_with_the_terms_of_the_tail(config):
    history = torch.arange(300) + 100
    history[-2:] = torch.tensor([150, 170])  # the tail has tokens of blocks 16 and 23
    kept = retrieved(history, 3, config, words).tolist()
    assert len(kept) <= config.target
    assert kept == sorted(kept)
    for block in (0, 50 // 3, 70 // 3):
        assert set(range(3 * block, 3 * block + 3)) <= set(kept)
    assert kept[-6:] == list(range(294, 300))
    assert retrieved(history[:20], 3, config, words).tolist() == list(range(20))


def test_it_reports_every_arm_at_every_length(model):
    step = small_model(3, gistnet="transformer", lensnet="transformer", levels=1, block_size=4, window=42)
    step.tree = replace(step.tree, tail=2)
    step.gpt.vocab_size = VOCABULARY
    fixed = build_eval_model(_Step(step), None, tokenizer=None, allocator=GreedyAllocator, tree=step.tree)
    fields = {name: getattr(fixed, name) for name in EngineEvalModel.__dataclass_fields__}
    model = EngineEvalModel(**fields)

    def task(tree):
        return _Small(tree, keys=2, values=3, filler=2, distractors=1)

    result = LongContext(windows=3, multiples=(1, 4), budget=36, task=task).run(model)
    arms = ("recency", "sink_recency", "bm25", "gists", "refocus", "oracle")
    for cursor in (38, 142):
        for arm in arms:
            assert 0 <= result.metrics[f"eval/long_context/after_{cursor}/accuracy/{arm}"] <= 1
            assert (f"eval/long_context/after_{cursor}/nll_gap/{arm}" in result.metrics) == (arm != "sink_recency")
            costs = [result.metrics[f"eval/long_context/after_{cursor}/{cost}/{arm}"] for cost in COSTS[2:]]
            assert min(costs) > 0
    assert [table.title.split(" of ")[0] for table in result.tables[1:3]] == ["accuracy by the third", "medians"]
    assert "chance 0.333" in result.tables[0].title


class _Step:
    """The parts of a model that the builder of evaluations reads."""

    def __init__(self, model):
        self.model, self.tree, self.gpt = model, model.tree, model.gpt
        self.gistnet, self.lensnet = model.gistnet, model.lensnet


class _Small(Needle):
    """The needle task with the token ids of a small vocabulary."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        return replace(batch, tokens=torch.where(batch.tokens >= 64, batch.tokens - 64, 12))

    def __init__(self, tree, **options):
        super().__init__(tree, **options)
        self.vocab_size = VOCABULARY
