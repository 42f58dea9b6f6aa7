"""Sessions: the cache is exact after any sequence of events, and appends may be divided in any way."""

from __future__ import annotations

import random

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcframe.runtime.gist_encoder import history_shape
from mcframe.runtime.history import History
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session import Session
from mcframe.runtime.session_config import SessionDefaults
from mcframe_plugins.allocator import GreedyAllocator, HierarchicalAllocator
from tests.support.modeling_builders import VOCABULARY
from tests.support.runtime_models import Digits, recomputed_logits, small_model

MODELS = [
    {"gistnet": "transformer", "lensnet": "transformer", "levels": 3},
    {"gistnet": "mean", "lensnet": "entry", "levels": 2, "slots": 2, "gist_bias": -1.0},
    {"gistnet": None, "lensnet": None, "levels": 1},
    {"gistnet": "tokens", "lensnet": None, "levels": 2, "block_size": 4},
]
GREEDY = Sampling(temperature=0.0)


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY - 1, (count,), generator=torch.Generator().manual_seed(seed))


def config_of(model, every=5, tail=4, sink=1, more=40, **options):
    budget = sink * model.tree.block_size + tail + every + more
    return SessionDefaults(budget=budget, sink=sink, tail=tail, refocus_every=every, **options).config(model.tree)


class Events(RuleBasedStateMachine):
    """Append, generate, save and open again, in any order."""

    @initialize(
        which=st.sampled_from(MODELS), every=st.sampled_from([1, 3, 8]), tail=st.sampled_from([1, 4]),
        sink=st.integers(0, 2), allocator=st.sampled_from([GreedyAllocator, HierarchicalAllocator]),
        seed=st.integers(0, 5),
    )  # fmt: skip
    def begin(self, which, every, tail, sink, allocator, seed):
        self.model = small_model(seed, **which)
        self.allocator, self.config = allocator, config_of(self.model, every, tail, sink)
        self.session = self.open(History.create(history_shape(self.model, VOCABULARY)))
        self.session.append(drawn(3, seed))
        self.count = 3

    def open(self, history):
        return Session(self.model, Digits(), self.allocator, history, self.config)

    @rule(count=st.sampled_from([1, 2, 30, 150]), seed=st.integers(0, 1000))
    def append(self, count, seed):
        self.session.append(drawn(count, seed))
        self.count += count

    @rule(count=st.sampled_from([1, 4, 20]))
    def generate(self, count):
        self.count += len(list(self.session.generate(count, GREEDY)))

    @rule()
    @precondition(lambda self: self.session.focus is not None and not self.session.appended)
    def change_of_gists_is_impossible(self):
        before = self.session.strip
        self.session.next_logits()
        assert sum(span.tokens for span in before) <= self.count

    @invariant()
    def logits_are_exact(self):
        if not hasattr(self, "session"):
            return
        assert self.session.history.tokens == self.count
        found = self.session.next_logits()
        torch.testing.assert_close(found, recomputed_logits(self.session), atol=1e-4, rtol=1e-4)
        assert self.session._decoder.cache.length <= self.config.budget
        entries = self.session.report.entries
        assert sum(entries.values()) <= self.config.budget


Events.TestCase.settings = settings(max_examples=15, stateful_step_count=10, deadline=None, derandomize=True)
TestEvents = Events.TestCase


def test_appends_may_be_divided_in_any_way():
    for seed, which in enumerate(MODELS):
        model = small_model(seed, **which)
        texts = []
        for cuts in range(4):
            rng = random.Random(cuts)
            session = Session(
                model,
                Digits(),
                GreedyAllocator,
                History.create(history_shape(model, VOCABULARY)),
                config_of(model, every=8),
            )
            found = []
            for part in range(3):  # the same tokens and generations, other divisions
                tokens = drawn(170, part)
                while len(tokens):
                    count = len(tokens) if not cuts else rng.choice([1, 1, 7, 60])
                    session.append(tokens[:count])
                    tokens = tokens[count:]
                found += [piece.token for piece in session.generate(12, GREEDY)]
            texts.append(found)
        assert texts.count(texts[0]) == len(texts)


def test_a_session_that_is_opened_again_continues_with_the_same_text(tmp_path):
    model = small_model(3, **MODELS[0])
    shape = history_shape(model, VOCABULARY)

    def session(folder, history):
        return Session(model, Digits(), GreedyAllocator, history, config_of(model, every=8))

    straight = session(None, History.create(shape))
    straight.append(drawn(300, 0))
    expected = [piece.token for piece in straight.generate(40, GREEDY)]
    stored = session(tmp_path, History.create(shape, tmp_path / "h"))
    stored.append(drawn(300, 0))
    found = [piece.token for piece in stored.generate(19, GREEDY)]
    stored.save()
    stored.close()
    again = session(tmp_path, History.open(tmp_path / "h", shape))
    assert not again.appended, "the focus is that of before"
    found += [piece.token for piece in again.generate(21, GREEDY)]
    assert found == expected
