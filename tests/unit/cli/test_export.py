"""`mcframe export` of pretrained base models: a folder that transformers reads alone, and mcframe completely."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from typer.testing import CliRunner

import mcframe
from mcframe.cli.app import app
from mcframe.context.context_tree import ContextTree
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.errors import UserError
from tests.support.pretrained_models import saved
from tests.support.written_runs import write_run

PROMPT = "def answer(question):\n    return 42\n" * 2


def settings_of(folder, trained, *more):
    return (
        "run.base = @base.huggingface", f"base.huggingface.path = '{folder}'",
        f"base.huggingface.trained = '{trained}'", "run.tokenizer = @tokenizer.huggingface",
        f"tokenizer.huggingface.path = '{folder}'", "run.gistnet = @gistnet.adapter", "gistnet.adapter.layer = 2",
        *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with a tokenizer, by name of the model."""
    found = {}
    for name in ("llama", "qwen3"):
        found[name] = saved(name, tmp_path_factory.mktemp(name), vocab_size=320)
        HuggingFaceTokenizer.example_settings(found[name])
    return found


def exported(run, out, *options):
    result = CliRunner().invoke(app, ["export", str(run), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.output


@torch.no_grad()
def scores(model, tokens):
    """Return logits of an uncompressed context, and the NLL of a compressed one."""
    focus = torch.zeros(1, model.tree.blocks, dtype=torch.int64)
    focus[0, 1:3] = 1
    return model(tokens[:, : model.tree.window]), model.evaluate_focus(tokens, focus)[0]


def tokens_for(tree: ContextTree):
    return torch.randint(0, 300, (1, tree.window + 1), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "trained"), [("llama", "lora"), ("qwen3", "lora"), ("llama", "all")])
@torch.no_grad()
def test_a_changed_base_is_written_merged(name, trained, models, tmp_path):
    model = write_run(tmp_path / "run", settings_of(models[name], trained)).model.eval()
    tokens = tokens_for(model.tree)
    logits, nll = scores(model, tokens)
    assert "merged" in exported(tmp_path / "run", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert alone.dtype == torch.float32
    torch.testing.assert_close(alone(tokens[:, :-1]).logits, logits, atol=1e-5, rtol=1e-5)
    frozen = transformers.AutoModelForCausalLM.from_pretrained(models[name])
    assert (frozen(tokens[:, :-1]).logits - logits).abs().max() > 1e-2
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "moved")
    loaded = mcframe.load_run(tmp_path / "moved")
    assert tokenizer(PROMPT, add_special_tokens=False)["input_ids"] == loaded.tokenizer.encode_batch([PROMPT])[0]
    torch.testing.assert_close(scores(loaded.model, tokens), (logits, nll), equal_nan=True, atol=1e-5, rtol=1e-5)
    assert (nll - nll.nan_to_num()).isfinite().any()
    text = "".join(p.read_text("utf-8", "replace") for p in (tmp_path / "moved").glob("*.gin"))
    assert str(models[name]) not in text


def test_a_frozen_base_stays_where_it_is_unless_copied(models, tmp_path):
    model = write_run(tmp_path / "run", settings_of(models["llama"], "nothing")).model.eval()
    tokens = tokens_for(model.tree)
    expected = scores(model, tokens)
    assert "frozen, stays in" in exported(tmp_path / "run", tmp_path / "small")
    assert "copied" in exported(tmp_path / "run", tmp_path / "complete", "--copy-base")
    assert not (tmp_path / "small" / "model.safetensors").exists()
    assert (tmp_path / "complete" / "model.safetensors").stat().st_size > 10_000
    moved = models["llama"].rename(models["llama"].with_name("elsewhere"))
    try:
        found = scores(mcframe.load_run(tmp_path / "complete").model, tokens)
        with pytest.raises(UserError, match="no such file"):
            mcframe.load_run(tmp_path / "small")
    finally:
        moved.rename(models["llama"])
    torch.testing.assert_close(found, expected, equal_nan=True)
    small = mcframe.load_run(tmp_path / "small")
    torch.testing.assert_close(scores(small.model, tokens), expected, equal_nan=True)
    session = small.session(budget=64)
    session.append(PROMPT)
    assert len([piece.text for piece in session.generate(4)]) == 4
    assert small.directory == tmp_path / "small"


@torch.no_grad()
def test_changes_that_read_gists_are_written_beside_the_frozen_base(models, tmp_path):
    settings = settings_of(models["llama"], "lora", "base.huggingface.lora_from = 'gist'")
    model = write_run(tmp_path / "run", settings).model.eval()
    tokens = tokens_for(model.tree)
    expected = scores(model, tokens)
    assert "frozen, stays in" in exported(tmp_path / "run", tmp_path / "small")
    assert "copied" in exported(tmp_path / "run", tmp_path / "complete", "--copy-base")
    for name in ("small", "complete"):
        found = scores(mcframe.load_run(tmp_path / name).model, tokens)
        torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=1e-5)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "complete")
    torch.testing.assert_close(alone(tokens[:, :-1]).logits, expected[0], atol=1e-5, rtol=1e-5)
    for part in model.gpt.layers.parameters():
        part.mul_(0.0 if part.requires_grad else 1.0)
    assert (scores(model, tokens)[1] - expected[1]).nan_to_num().abs().max() > 1e-3


def test_other_positions_are_noted(models, tmp_path):
    write_run(tmp_path / "run", settings_of(models["llama"], "lora", "positions.gaussian_rope.base = 500.0"))
    assert "other positions than this run" in exported(tmp_path / "run", tmp_path / "out")


def refused(*arguments):
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.replace("│", " ").split())


def test_what_cannot_be_exported_or_opened_is_refused(models, tmp_path):
    write_run(tmp_path / "run", settings_of(models["llama"], "nothing"))
    run = tmp_path / "run"
    assert "expected a new or empty folder" in refused(run, "--out", run)
    assert "--copy-base: expected --out FOLDER" in refused(run, "--copy-base")
    exported(run, tmp_path / "out", "--copy-base")

    def damaged(name, change):
        folder = shutil.copytree(tmp_path / "out", tmp_path / f"{change.__name__} {name}")
        change(folder / name)
        with pytest.raises(UserError) as caught:
            mcframe.load_run(folder, trust=True)
        assert caught.value.remedy
        return str(caught.value)

    def without_the_end(file):
        file.write_bytes(file.read_bytes()[:-5])

    def other_format(file):
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 9}))

    def other_base(file):
        file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.1}))

    assert "gistnet.safetensors of" in damaged("gistnet.safetensors", without_the_end)
    assert "cannot be read: JSONDecodeError" in damaged("mcframe.json", without_the_end)
    assert "expected format 1, got 9" in damaged("mcframe.json", other_format)
    assert "expected the model that" in damaged("config.json", other_base)


def test_a_run_of_others_needs_trust_for_its_base(models, tmp_path):
    write_run(tmp_path / "run", settings_of(models["llama"], "nothing"))
    exported(tmp_path / "run", tmp_path / "out")
    exported(tmp_path / "run", tmp_path / "complete", "--copy-base")
    for name in ("out", "complete"):
        config = tmp_path / name / "config.gin"
        config.write_text(config.read_text() + "# edited\n")
    with pytest.raises(UserError, match="from elsewhere or was edited"):
        mcframe.load_run(tmp_path / "out")
    mcframe.load_run(tmp_path / "complete")
