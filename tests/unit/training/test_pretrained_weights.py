"""Pretrained weights in training: frozen, LoRA or all, at every ZeRO stage, in checkpoints, after the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.training.build import build_components, build_model
from mcframe.training.startup_summary import memory_estimate
from mcframe.training.state_files import read
from mcframe.training.weights import start_from
from tests.support.layouts import AFTER, BEFORE, build_engine, everything, in_ranks, save, train
from tests.support.pretrained_models import saved

MORE = range(BEFORE, BEFORE + AFTER)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("llama"))


def settings_of(folder, trained="nothing"):
    return (
        "run.base = @base.huggingface", f"base.huggingface.path = '{folder}'",
        f"base.huggingface.trained = '{trained}'", "run.gistnet = @gistnet.adapter", "gistnet.adapter.layer = 2",
        "gpt.width = 32", "run.extra_losses = []",
        # At ZeRO 3 DeepSpeed reads the list of all later modules after each module, up to this distance.
        "deepspeed.settings = {'zero_optimization': {'stage3_max_reuse_distance': 0}}",
    )  # fmt: skip


def train_and_save(folder, settings, stages):
    """Train at each stage, save after two steps, train on: return the losses by stage."""
    found = {}
    for stage in stages:
        engine, config = build_engine(stage, settings)
        first = train(engine, config, range(BEFORE))
        save(engine, Path(folder, f"stage {stage}"))
        found[stage] = [*first, *train(engine, config, MORE)]
    return found


def train_and_resume(folder, settings, stages):
    """Train and save at each stage, then resume stage 3 at 0 and 0 at 3; one start, as imports take seconds."""
    return train_and_save(folder, settings, stages), load_and_train(folder, settings, [(3, 0), (0, 3)])


def load_and_train(folder, settings, pairs):
    """Load the state of each first stage at the second one, and train on: return the losses by first stage."""
    from mcframe.training.engine_state import put

    found = {}
    for source, stage in pairs:
        engine, config = build_engine(stage, settings)
        put(engine, read(Path(folder, f"stage {source}")))
        found[source] = train(engine, config, MORE)
    return found


HELD = {"nothing": [], "lora": ["lora_A", "lora_B"], "all": ["token_embed", "layers", "norm", "lm_head"]}
"""Parts of the names of the weights of the base model that a checkpoint holds."""


@pytest.mark.parametrize(
    ("trained", "stages"),
    [
        ("lora", (0, 3)),  # weights that are frozen, and others
        *(pytest.param(*each, marks=pytest.mark.matrix) for each in (("lora", (0, 1, 2, 3)), ("nothing", (0, 3)),
                                                                     ("all", (0, 3)))),
    ],
)  # fmt: skip
def test_zero_on_two_ranks_trains_like_one_rank_and_resumes(trained, stages, llama, tmp_path):
    settings = settings_of(llama, trained)
    (reference,) = in_ranks(train_and_save, 1, tmp_path / "one", settings, [0])
    (found, resumed), _ = in_ranks(train_and_resume, 2, tmp_path / "two", settings, stages)
    assert reference[0][-1] != pytest.approx(reference[0][0], abs=1e-4)
    for losses in found.values():
        assert losses == pytest.approx(reference[0], abs=TOLERANCE)
    for source, losses in resumed.items():
        assert losses == pytest.approx(found[source][BEFORE:], abs=TOLERANCE)
    names = [name for name in everything(tmp_path / "two" / "stage 3") if name.startswith("weights/model.gpt.")]
    assert_held(names, trained)


def assert_held(names, trained):
    assert all(any(part in name for part in [*HELD[trained], "_extra_state"]) for name in names)
    assert all(any(part in name for name in names) for part in HELD[trained])


def save_once(folder, llama, kinds):
    """Train one step at ZeRO 3 for each kind of `base.huggingface.trained`, and save."""
    for trained in kinds:
        engine, config = build_engine(3, settings_of(llama, trained))
        train(engine, config, range(1))
        save(engine, Path(folder, trained))


def test_a_checkpoint_holds_the_weights_that_are_trained(llama, tmp_path):
    kinds = ("nothing", "all")
    in_ranks(save_once, 1, tmp_path, llama, kinds)
    for trained in kinds:
        assert_held([each for each in everything(tmp_path / trained) if each.startswith("weights/model.gpt.")], trained)


def refused(settings):
    """Start an engine whose base model gets a wrong weight meanwhile, and return the error."""
    import deepspeed

    initialize = deepspeed.initialize

    def wrong(model, **options):
        with torch.no_grad():
            model.model.gpt.layers[1].mlp.up_proj.weight[0, 0] += 1.0
        return initialize(model=model, **options)

    deepspeed.initialize = wrong
    try:
        build_engine(2, settings)
    except UserError as error:
        return str(error)
    return ""


def test_a_wrong_weight_after_the_start_is_an_error(llama):
    (message,) = in_ranks(refused, 1, settings_of(llama))
    assert "1 of 29 pretrained weights differ" in message
    assert "layers.1.mlp.up_proj.weight" in message


def model_of(settings):
    run_config = load_run_config(["smoke.gin"], settings).run_config
    return build_model(run_config, 257)


def test_a_state_without_the_base_is_loaded_and_other_files_are_refused(llama, tmp_path):
    model = model_of(settings_of(llama, "lora"))
    state = model.state_dict()
    assert {name.partition("lora_")[1] for name in state if name.startswith("gpt.layers")} == {"lora_"}
    assert not any(name.startswith("gpt.token_embed") for name in state)
    other = model_of((*settings_of(llama, "lora"), "run.seed = 5"))
    other.load_state_dict(state)
    for name, value in model.state_dict().items():
        found = other.state_dict()[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    saved("llama", tmp_path, rms_norm_eps=1e-5)
    with pytest.raises(UserError, match="expected the files with which the checkpoint was trained") as caught:
        model_of(settings_of(tmp_path, "lora")).load_state_dict(state)
    assert caught.value.binding == "base.huggingface.path"


def test_frozen_weights_need_no_gradients_in_the_estimate_of_memory(llama):
    found = {}
    for trained in ("nothing", "all"):
        config = load_run_config(["smoke.gin"], (*settings_of(llama, trained), "deepspeed.zero_stage = 2")).run_config
        parts = build_components(config)
        found[trained] = memory_estimate(parts.step, parts.optimizer, config, 1)
        base = 4 * sum(each.numel() for each in parts.model.gpt.parameters())
    assert found["all"]["weights"] == found["nothing"]["weights"]
    assert found["all"]["gradients"] - found["nothing"]["gradients"] == base
    assert found["all"]["optimizer"] - found["nothing"]["optimizer"] == 3 * base


def test_gists_of_the_adapter_start_as_newlines(llama):
    model = model_of(settings_of(llama))
    gists = model.gistnet(torch.randn(2, 3, 4, 32), 1)
    assert torch.equal(gists, model.gpt.token_embed.weight[0].expand(2, 3, 1, 32))


@pytest.mark.parametrize(("trained", "later"), [("nothing", "nothing"), ("nothing", "lora"), ("all", "all")])
def test_a_run_starts_from_another_ones_adapter(trained, later, llama, tmp_path, monkeypatch):
    first, step = (
        build_components(load_run_config(["smoke.gin"], settings_of(llama, each)).run_config).step
        for each in (trained, later)
    )
    state = {
        name: value + 1 if isinstance(value, torch.Tensor) else value for name, value in first.state_dict().items()
    }
    monkeypatch.setattr("mcframe.training.weights.load_weights", lambda checkpoint: state)
    monkeypatch.setattr("mcframe.training.weights.find", lambda path: type("At", (), {"path": tmp_path}))
    assert start_from(step, str(tmp_path)).startswith(
        f"{'base model, ' if trained == 'all' else ''}GistNet, LensNet of "
    )
    assert torch.equal(step.model.gistnet.down.bias, torch.ones(32))
