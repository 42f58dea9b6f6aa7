"""docs/pretrained.md: its gin lines build and train a step; its preset is one of a run that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.training.build import build_components
from mcframe.training.flops import StepFlops
from mcframe.training.train_step import StepBatch
from tests.support.forked_ranks import uncounted
from tests.support.pretrained_models import edited, saved

GIN = Path(__file__).parents[3] / "gin"
PAGE = (GIN.parent / "docs" / "pretrained.md").read_text("utf-8")


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


@pytest.mark.parametrize("preset", ["smollm2", "llama_8b"])
def test_the_preset_collapses_what_it_states(preset):
    stated = re.search(r"(\d+) of the (\d+) blocks before the tail", (GIN / f"{preset}.gin").read_text("utf-8"))
    config = load_run_config([f"{preset}.gin"], []).run_config
    tree, length = config.context.tree, config.variant_length(0)
    assert stated
    assert ((tree.window - length) // tree.saving(1), tree.cursor // tree.block_size) == tuple(
        map(int, stated.groups())
    )


def checked(monkeypatch, tmp_path, *arguments):
    """Return the output of `mcframe check` without network and without files of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, value in (("COLUMNS", "250"), ("MCFRAME_CACHE", str(tmp_path)), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["check", *arguments])
    assert result.exit_code == 0, result.output
    assert "bound but unused" not in result.output
    return result.output


def test_the_plan_for_eight_gpus_is_checked_without_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(StepFlops, "_run", uncounted)  # 40 s for 32 layers
    output = checked(monkeypatch, tmp_path, "llama_8b.gin", "--ranks", "8", "--set", "base.huggingface.lora_rank = 8")
    # 8,030,261,248 parameters of the model, and 8 rows and columns of each map of 32 layers.
    sizes = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3
    assert f"{8_030_261_248 + 32 * 8 * sizes:,} parameters" in output
    assert re.search(r"1[56]\.\d\d GiB on each of 8 rank\(s\)", output)
    assert "note: meta-llama/Llama-3.1-8B: expected a folder" in output


def test_the_gpu_preset_is_checked_with_a_model_of_a_folder(monkeypatch, tmp_path):
    HuggingFaceTokenizer.example_settings(saved("llama", tmp_path / "model", vocab_size=320))
    edited(tmp_path / "model", max_position_embeddings=2048)
    names = ("base", "tokenizer")
    paths = [part for name in names for part in ("--set", f"{name}.huggingface.path = '{tmp_path / 'model'}'")]
    output = checked(monkeypatch, tmp_path, "smollm2_gpu.gin", *paths, "--set", "gistnet.adapter.layer = 2")
    assert "HuggingFaceFW/fineweb-edu" in output
    assert "32 sequences of 2,048" in output
    assert re.search(r"FLOPs a token .* G plain; .* G at the start", output)
