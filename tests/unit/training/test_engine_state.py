"""The state of an engine, carried between numbers of ranks and ZeRO stages: equal to the bit, and trained on alike."""

import itertools
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mcframe.errors import UserError
from mcframe.training.state_files import read
from tests.support.layouts import AFTER, BEFORE, build_engine, everything, in_ranks, save, train

LAYOUTS = list(itertools.product((1, 2), range(4)))
MORE = range(BEFORE, BEFORE + AFTER)
TOLERANCE = 1e-3
"""Measured: 0 at one number of ranks, and 2e-6 between one and two, which sum in another order."""


def chosen(optimizer):
    return (f"run.optimizer = @optimizer.{optimizer}",)


def saved_at(folder, layout):
    return Path(folder, "ranks {} stage {}".format(*layout))


def again(folder, source, target):
    return saved_at(f"{saved_at(folder, source)}, carried", target)


def train_and_save(folder, stages, settings, plugins=()):
    """Train at each stage, save, and train on: returns the later losses by layout."""
    found = {}
    for stage in stages:
        engine, config = build_engine(stage, settings, plugins)
        train(engine, config, range(BEFORE))
        layout = dist.get_world_size(), stage
        save(engine, saved_at(folder, layout))
        found[layout] = train(engine, config, MORE)
    return found


def load_and_train(folder, pairs, settings, plugins=()):
    """Load each layout's state at another stage, save it again, and train on: returns the losses by pair."""
    from mcframe.training.engine_state import put

    found = {}
    for source, stage in pairs:
        engine, config = build_engine(stage, settings, plugins)
        put(engine, read(saved_at(folder, source)))
        save(engine, again(folder, source, (dist.get_world_size(), stage)))
        found[source, (dist.get_world_size(), stage)] = train(engine, config, MORE)
    return found


def bits(value):
    """Return a value of which 0.0 and -0.0 differ, and NaN equals itself."""
    return value.contiguous().reshape(-1).view(torch.uint8).tolist() if isinstance(value, torch.Tensor) else value


def assert_carried(folder, before, after):
    for (source, target), losses in after.items():
        saved, found = everything(saved_at(folder, source)), everything(again(folder, source, target))
        assert saved.keys() == found.keys()
        assert [name for name in saved if bits(saved[name]) != bits(found[name])] == []
        assert losses == pytest.approx(before[source], abs=0 if source == target else TOLERANCE), (source, target)


def with_each(function, arguments):
    """Return what a function returns for the arguments of each optimizer, from one start of the ranks."""
    return {name: function(*those, chosen(name)) for name, those in arguments.items()}


def test_states_are_carried_between_ranks_and_stages(tmp_path):
    """Muon has its momentum elsewhere at ZeRO 1 on two ranks; AdamW's partitions at ZeRO 3 end in padding."""
    folders = {"muon": tmp_path / "muon", "adamw": tmp_path / "adamw"}
    saved = {name: (path, [1]) for name, path in folders.items()}
    loaded = {name: (path, [((2, 1), 3 if name == "muon" else 0)]) for name, path in folders.items()}
    before = in_ranks(with_each, 2, train_and_save, saved)[0]
    after = in_ranks(with_each, 1, load_and_train, loaded)[0]
    for name, path in folders.items():
        assert_carried(path, before[name], after[name])


@pytest.mark.matrix
def test_bf16_keeps_its_master_weights(tmp_path):
    settings = (*chosen("muon"), "deepspeed.precision = 'bf16'")
    before = in_ranks(train_and_save, 1, tmp_path, [1, 3], settings)[0]
    pairs = [((1, 1), 3), ((1, 3), 1), ((1, 1), 1)]
    for (source, target), losses in in_ranks(load_and_train, 1, tmp_path, pairs, settings)[0].items():
        saved, found = everything(saved_at(tmp_path, source)), everything(again(tmp_path, source, target))
        weights = [name for name in saved if name.startswith("weights/")]
        assert any(value.float().sub(value.bfloat16().float()).any() for value in map(saved.get, weights))
        assert [name for name in weights if bits(saved[name]) != bits(found[name])] == []
        assert losses == pytest.approx(before[source], abs=0.02)


@pytest.mark.matrix
@pytest.mark.parametrize("more", [(), ("deepspeed.precision = 'bf16'",)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_states_are_carried_between_all_layouts(tmp_path, optimizer, ranks, more):
    settings, stages = (*chosen(optimizer), *more), range(1 if more else 0, 4)
    before = {}
    for each in (1, 2):
        before |= in_ranks(train_and_save, each, tmp_path, stages, settings)[0]
    pairs = [((world, stage), target) for world in (1, 2) for stage in stages for target in stages]
    after = in_ranks(load_and_train, ranks, tmp_path, pairs, settings)[0]
    if not more:
        assert_carried(tmp_path, before, after)
    for (source, target), losses in after.items():
        assert losses == pytest.approx(before[source], abs=0.02 if more else TOLERANCE)
        difference = max(abs(one - other) for one, other in zip(losses, before[source], strict=True))
        print(optimizer, *more, f"(ranks, stage) {source} to {target}: losses differ by {difference:.1e}")


# ---- third-party optimizers ----------------------------------------------------------------------
OPTIMIZERS = '''
    """Optimizers with states of several forms."""

    import torch

    from mcframe.hookspecs import Optimizer, UpdateRule, hookimpl

    class Own(torch.optim.SGD):
        """SGD with momentum, a counter, and something of its own."""

        kept = 5

        def step(self, closure=None):
            for group in self.param_groups:
                group["calls"] = group.get("calls", 0) + 1
                for each in group["params"]:
                    self.state[each]["steps"] = self.state[each].get("steps", 0) + 1
            return super().step(closure)

        def state_dict(self):
            return {**super().state_dict(), "kept": self.kept}

        def load_state_dict(self, state):
            self.kept = state["kept"]
            super().load_state_dict({name: state[name] for name in ("state", "param_groups")})

    class WithObject(torch.optim.SGD):
        def step(self, closure=None):
            self.state[self.param_groups[0]["params"][0]]["thing"] = object()
            return super().step(closure)

    class Mine(Optimizer):
        def __init__(self, *, kind: str = "own"):
            self.kind = kind

        def update_rule(self, role, lr):
            return UpdateRule("SGD", lr, states=1)

        def build(self, groups, offload):
            for group in groups:
                del group["rule"]
            if self.kind == "factored":
                return torch.optim.Adafactor(groups)
            return {"own": Own, "object": WithObject}[self.kind](groups, momentum=0.9)

    @hookimpl
    def register_plugins(register):
        register("mine", Mine)
'''


def of_kind(kind):
    return (*chosen("mine"), f"optimizer.mine.kind = '{kind}'")


def refusals(folder, plugins):
    """Return the messages for states that cannot be carried, or saved."""
    found = []
    train_and_save(folder, [0], of_kind("factored"), plugins)
    for kind, action in (("factored", load_and_train), ("object", train_and_save)):
        try:
            action(folder, [((1, 0), 1)] if action is load_and_train else [0], of_kind(kind), plugins)
        except UserError as error:
            found.append(f"{error.message}; {error.remedy}")
    return found


def test_third_party_optimizers_are_carried_or_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(OPTIMIZERS))
    before = in_ranks(train_and_save, 1, tmp_path, [0], of_kind("own"), [str(file)])[0]
    pairs = [((1, 0), 0), ((1, 0), 1), ((1, 0), 3)]
    after = in_ranks(load_and_train, 1, tmp_path, pairs, of_kind("own"), [str(file)])[0]
    assert_carried(tmp_path, before, after)
    (first, *_) = (read(again(tmp_path, *pair)) for pair in after)
    assert first.value(0, "optimizer") == {"kept": 5}
    assert [group["calls"] for group in first.value(0, "options")] == [BEFORE] * len(first.value(0, "options"))
    factored, thing = in_ranks(refusals, 1, tmp_path, [str(file)])[0]
    assert factored.startswith("optimizer Adafactor: its state 'col_var' of 1 rank(s) at ZeRO 0 cannot be carried to")
    assert "deepspeed.zero_stage = 0" in factored
    assert thing.startswith("optimizer WithObject: its state cannot be saved: optimizer/thing: expected numbers")


# ---- the rest of a module ------------------------------------------------------------------------
def rolled_back(folder, stage):
    """Train, save, train on, load into the same engine, and train again; with buffers and an extra state."""
    from mcframe.training.engine_state import put, weights

    engine, config = build_engine(stage, chosen("muon"))
    gpt = engine.model.gpt
    gpt.register_buffer("seen", torch.arange(3))
    gpt.register_buffer("cached", torch.zeros(2), persistent=False)
    type(gpt).get_extra_state = lambda self: {"n": (1, self.n)}
    type(gpt).set_extra_state = lambda self, state: setattr(self, "n", state["n"][1])
    gpt.n = 7
    train(engine, config, range(BEFORE))
    save(engine, Path(folder))
    first = train(engine, config, MORE)
    gpt.seen += 1
    gpt.n = 8
    put(engine, read(Path(folder)))
    assert (gpt.seen.tolist(), gpt.n) == ([0, 1, 2], 7)
    found = weights(read(Path(folder)))
    assert found["model.gpt._extra_state"] == {"n": (1, 7)}
    assert "model.gpt.cached" not in found
    return first, train(engine, config, MORE)


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.matrix), 3])
def test_an_engine_that_has_trained_on_is_set_back(tmp_path, stage):
    first, second = in_ranks(rolled_back, 1, str(tmp_path / "state"), stage)[0]
    assert first == second
