"""docs/pretrained.md: its gin lines build and train a step; its preset is one of a run that loads."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.training.build import build_components
from mcframe.training.train_step import StepBatch
from tests.support.pretrained_models import saved

PAGE = (Path(__file__).parents[3] / "docs" / "pretrained.md").read_text("utf-8")


def test_the_gin_lines_of_the_page_train_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    HuggingFaceTokenizer.example_settings(saved("llama", tmp_path / "path" / "to" / "model", vocab_size=320))
    found = re.search(r"^```gin\n(.*?)^```$", PAGE, re.M | re.S)
    assert found
    (tmp_path / "mine.gin").write_text(found[1], "utf-8")
    run_config = load_run_config([tmp_path / "mine.gin"], []).run_config
    parts = build_components(run_config)
    tokens = torch.randint(0, 300, (2, 257))
    length = run_config.variant_length(0)
    loss, _ = parts.step(StepBatch(tokens, variant_seeds(0, torch.arange(2), 1), length))
    loss.backward()
    assert torch.isfinite(loss)
    assert parts.model.gistnet.down.weight.grad.any()
    assert not any(each.requires_grad for each in parts.model.gpt.parameters())


def test_the_preset_collapses_what_it_states(tmp_path):
    config = load_run_config(["smollm2.gin"], []).run_config
    tree, length = config.context.tree, config.variant_length(0)
    collapsed = (tree.window - length) // tree.saving(1)
    assert (collapsed, tree.cursor // tree.block_size) == (18, 24)
    assert config.steps * config.sequences == 1900
