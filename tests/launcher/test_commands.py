"""The `mcframe` command, called in this process: check, doctor, sample, export and tokenizer; and what a run writes."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.training.checkpoint_folder import find
from mcframe.training.weights import load_weights, model_weights
from tests.support.shared_runs import PLAIN, UNTRAINED

launcher = pytest.mark.launcher


@pytest.fixture
def mcframe(monkeypatch, tmp_path):
    """Call the command in this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "PATH"):
        monkeypatch.setenv(name, {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": "1", "PATH": "/usr/bin:/bin"}.get(name, "0"))
    for name, value in {"COLUMNS": "200", "MCFRAME_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


# ---- check ---------------------------------------------------------------------------------------
def checked(mcframe, *arguments):
    result = mcframe("check", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def unused(output):
    return [line.split()[3] for line in output.splitlines() if line.startswith("bound but unused")]


@pytest.fixture
def presets_are_checked_too(monkeypatch):
    monkeypatch.setattr("mcframe.config.loader.preset_folders", list)


@pytest.mark.usefixtures("presets_are_checked_too")
def test_check_describes_run10(mcframe, root):
    output = checked(mcframe, root / "gin/run10.gin")
    for figure in ("(185.6 M)", "1.04 G plain", "114,688 (56 sequences of 2,048)", "37,750, 4,329,472,000 tokens"):
        assert figure in output
    assert "LOD1: up to 17 in a context" in output
    assert "GiB on each of 1 rank(s)" in output
    for plugin in ("gistnet.transformer", "allocator.greedy", "text.huggingface", "tokenizer.bpe", "mcframe 0.1.0"):
        assert plugin in output
    assert unused(output) == []


def test_check_describes_the_baseline(mcframe, root):
    output = checked(mcframe, root / "gin/run10_baseline.gin")
    assert "(185.6 M)" in output
    assert "GistNet" not in output
    assert "114,688" in output


def test_check_lists_unused_bindings_of_the_user_and_not_of_a_preset(mcframe, tmp_path):
    (tmp_path / "mine.gin").write_text("include 'base.gin'\nrun.gistnet = @gistnet.mean\nlensnet.mlp.hidden = 6\n")
    (tmp_path / "base.gin").write_text("include 'smoke.gin'\nWIDTH = 3\n")
    output = checked(mcframe, tmp_path / "mine.gin", "--set", "fats/gpt.depth = 3")
    assert sorted(unused(output)) == ["WIDTH", "fats/gpt.depth", "lensnet.mlp.hidden"]
    assert "--set 'fats/gpt.depth = 3'" in output


def test_check_refuses_levels_that_never_occur_unless_allowed(mcframe, root):
    levels = ("--set", "context.levels = 2")
    result = mcframe("check", root / "gin/run10.gin", *levels)
    assert result.exit_code == 2
    assert "LOD 2 can never be used" in result.output
    allowed = checked(mcframe, root / "gin/run10.gin", *levels, "--set", "context.allow_unused_levels = True")
    assert "LOD2: up to 0" in allowed


@pytest.mark.usefixtures("presets_are_checked_too")
def test_presets_bind_nothing_unused(mcframe, root):
    for name in ("smoke", "quickstart", "gists", "recall", "recall_32", "recall_focus", "longrecall_short"):
        assert unused(checked(mcframe, root / f"gin/{name}.gin")) == [], name


@pytest.mark.usefixtures("presets_are_checked_too")
@pytest.mark.parametrize("name", ["smoke", "quickstart"])
def test_baselines_leave_only_plug_ins_unused(mcframe, root, name):
    keys = unused(checked(mcframe, root / f"gin/{name}.gin", "--baseline"))
    assert keys
    assert all(key.startswith(("gistnet.", "lensnet.", "variants.", "run.gistnet", "run.lensnet")) for key in keys)


def test_memory_falls_with_ranks_at_zero_3(mcframe, root):
    def size(ranks):
        output = checked(mcframe, root / "gin/run10.gin", "--ranks", ranks, "--set", "deepspeed.zero_stage = 3")
        return float(output.split("memory a rank")[1].split("│")[1].split()[0])

    assert size(8) < size(2)


# ---- doctor --------------------------------------------------------------------------------------
def test_doctor_lists_what_is_installed_and_what_is_missing(mcframe, monkeypatch, tmp_path):
    result = mcframe("doctor")
    assert "deepspeed" in result.output
    assert "plug-ins" in result.output
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    alone, missing = mcframe("doctor"), mcframe("doctor", "--ranks", 2)
    assert (alone.exit_code, missing.exit_code) == (0, 1)
    assert "apt-get install g++" in missing.output


# ---- sample and export ---------------------------------------------------------------------------
@launcher
def test_a_sample_continues_the_prompt_and_repeats_for_a_seed(mcframe, plain_run):
    def sample(*options):
        result = mcframe("sample", plain_run.run_dir, "--prompt", "import ", "--length", 12, *options)
        assert result.exit_code == 0, result.output
        return result.output

    first = sample()
    assert first.startswith("import ")
    assert len(first) > len("import ")
    assert sample() == first
    assert sample("--seed", 1) != first
    assert sample("--temperature", 0) == sample("--temperature", 0, "--seed", 5)


@launcher
def test_a_note_is_printed_if_a_prompt_is_cut(mcframe, plain_run):
    result = mcframe("sample", plain_run.run_dir, "--prompt", "x" * 200, "--length", 1)
    assert result.exit_code == 0, result.output
    assert "of 200 tokens" in result.output
    assert "last 128" in result.output


@launcher
def test_both_zero_stages_export_the_same_model(mcframe, plain_run, sharded_run, tmp_path):
    weights = []
    for run in (plain_run, sharded_run):
        file = tmp_path / f"{run.run_dir.name}.safetensors"
        result = mcframe("export", run.run_dir, "--out", file)
        assert result.exit_code == 0, result.output
        assert "after 6,144 tokens" in result.output
        weights.append(load_file(file))
        for name, tensor in model_weights(load_weights(find(run.run_dir))).items():
            assert tensor.dtype == weights[-1][name].dtype == torch.float32
            assert torch.equal(tensor, weights[-1][name])
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["tokens"] == "6144"
            assert "context.window = 128" in opened.metadata()["config.gin"]
    plain, sharded = weights
    assert set(plain) == set(sharded)
    assert sum(tensor.numel() for tensor in plain.values()) == 131_392 + 57_728 + 54_785
    for name, tensor in plain.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=0, atol=1e-3)
    sampled = mcframe("sample", sharded_run.run_dir, "--prompt", "def ", "--temperature", 0, "--length", 4)
    assert sampled.exit_code == 0, sampled.output
    # The weights are those after training.
    written = load_file(find(plain_run.run_dir).path / "rank-0.safetensors")
    assert all(torch.equal(written[f"weights/model.{name}"], tensor) for name, tensor in plain.items())
    assert plain["gpt.blocks.0.down.weight"].abs().max() > 0  # starts at zero


WITHOUT_DEEPSPEED = """
import sys
sys.modules["deepspeed"] = None  # importing it raises
from safetensors import safe_open
from safetensors.torch import load_file
from mcframe.config.run_config import load_run_config
from mcframe.training.build import build_model
with safe_open(sys.argv[1], "pt") as file, open(sys.argv[2], "w") as config:
    config.write(file.metadata()["config.gin"])
run_config = load_run_config([sys.argv[2]], []).run_config
model = build_model(run_config, run_config.tokenizer().vocab_size)
print(model.load_state_dict(load_file(sys.argv[1])))
"""


@launcher
def test_an_export_loads_without_deepspeed(mcframe, launches, sharded_run, tmp_path):
    file = tmp_path / "model.safetensors"
    assert mcframe("export", sharded_run.run_dir, "--out", file).exit_code == 0
    command = [sys.executable, "-c", WITHOUT_DEEPSPEED, str(file), str(tmp_path / "config.gin")]
    assert "All keys matched" in launches.execute(command).succeeded().output


def test_commands_on_a_folder_without_a_run_are_refused(mcframe, tmp_path):
    for command in (("export", tmp_path), ("sample", tmp_path, "--prompt", "a")):
        result = mcframe(*command)
        assert result.exit_code == 2
        assert "holds no complete checkpoint" in result.output
        assert "Traceback" not in result.output


# ---- tokenizer -----------------------------------------------------------------------------------
@launcher
def test_a_small_bpe_is_trained_and_a_run_uses_it(mcframe, launches, monkeypatch, smoke, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(f"the gist of the tree number {number} and its window. " * 120)
    file = tmp_path / "bpe.gin"
    file.write_text(
        f"include '{smoke}'\nrun.text = @text.local_files\ntext.local_files.paths = {str(corpus)!r}\n"
        "run.tokenizer = @tokenizer.bpe\ntokenizer.bpe.vocab_size = 280\ntokenizer.bpe.name = 'small'\n"
        "data.validation_fraction = 0.3\nvalidation.windows = 2\nrun.total_tokens = 2048\n"
    )
    monkeypatch.setenv("MCFRAME_CACHE", launches.environment["MCFRAME_CACHE"])
    trained = mcframe("tokenizer", "--gin", file)
    assert trained.exit_code == 0, trained.output
    assert "280 entries in" in trained.output
    assert (launches.folder / "cache/tokenizers/small-280.json").exists()
    result = launches.run(gin=file).succeeded()
    assert len(result.curve("val/bpb")) == 2
    # A token has several bytes here, so bits per byte are not nats per token in another unit.
    assert result.curve("val/bpb")[-1] < 0.7 * result.curve("val/loss")[-1] / 0.6931


def test_a_tokenizer_that_cannot_be_trained_is_refused(mcframe, smoke):
    result = mcframe("tokenizer", "--gin", smoke)
    assert result.exit_code == 2
    assert "@tokenizer.bytes" in result.output


# ---- files of a run, and starting it again --------------------------------------------------------
@launcher
def test_a_run_starts_again_from_its_operative_config(launches, plain_run):
    again = launches.run(gin=plain_run.run_dir / "operative.gin").succeeded()
    assert again.metrics == plain_run.metrics
    assert (again.run_dir / "operative.gin").read_text() == (plain_run.run_dir / "operative.gin").read_text()


@launcher
def test_the_stored_config_equals_the_original(plain_run, smoke):
    expected = load_run_config([smoke], list(PLAIN)).config.as_dict()
    assert load_run_config([plain_run.run_dir / "config.gin"], []).config.as_dict() == expected


@launcher
def test_the_baseline_reads_the_same_tokens_in_the_same_order(launches, smoke, untrained_run):
    full = untrained_run
    plain = ("logging.wandb = 'disabled'", "figures.every = 0", "logging.tensorboard = False")
    baseline = launches.run(*UNTRAINED, *plain, options=["--baseline"]).succeeded()
    for name in ("train/tokens_per_step", "train/tokens", "train/loss_lod0", "val/loss"):
        assert baseline.curve(name) == full.curve(name)
        assert len(full.curve(name)) >= 4
    assert len(set(full.curve("train/loss_lod0"))) == 6
    assert [tokens for tokens in full.metrics if "val/bpb" in full.metrics[tokens]] == [0, 2048, 4096, 6144]
    assert [tokens for tokens in baseline.metrics if "val/bpb" in baseline.metrics[tokens]] == [0, 2048, 4096, 6144]
    assert not any(
        name.startswith("mc/tail") or "lod_loss" in name for entry in baseline.metrics.values() for name in entry
    )
    assert baseline.curve("train/loss") == pytest.approx(baseline.curve("train/loss_lod0"))


@launcher
def test_output_and_files_of_a_run(plain_run):
    lines = plain_run.output.splitlines()
    focused = [line for line in lines if line.startswith("focused ")]
    assert len(focused) >= 6  # three held-out windows, before training and at its end
    assert any("entries," in line and "gists" in line and "|" in line for line in focused)
    assert any(line.startswith("random ") for line in lines)
    progress = [line for line in lines if "tokens/s" in line and "ETA" in line and "loss" in line]
    assert len(progress) >= 4
    assert "6.14k/6.14k tokens" in progress[-1]
    text = plain_run.text
    assert "Run finished" in text
    for label in ("loss", "validation", "bits/byte", "speed", "checkpoint", "metrics"):
        assert label in text.split("Run finished")[1]
    assert str(plain_run.run_dir / "metrics.jsonl") in text
    summary = plain_run.summary
    assert (summary["status"], summary["tokens"], summary["steps"]) == ("finished", 6144, 6)
    provenance = json.loads((plain_run.run_dir / "provenance.json").read_text())
    assert set(provenance["plugins"]) == {"mcframe"}
