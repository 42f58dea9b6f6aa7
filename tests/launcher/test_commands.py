"""The `mcframe` command: check and doctor in this process, what belongs to a run on a run of its own."""

import importlib.util
import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.training.checkpoints import find
from mcframe.training.weights import load_weights, model_weights

launcher = pytest.mark.launcher

SHORT = ("run.total_tokens = 6144", "logging.every = 1024", "sampling.every = 4096", "sampling.length = 8")


@pytest.fixture
def mcframe(monkeypatch, tmp_path):
    """Runs the command in this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "PATH"):
        monkeypatch.setenv(name, {"DS_ACCELERATOR": "cpu", "PATH": "/usr/bin:/bin"}.get(name, "0"))
    for name, value in {"COLUMNS": "200", "MCFRAME_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="session")
def plain_run(launches):
    """One rank at ZeRO 0, through the launcher; what test_zero.py compares with."""
    settings = (*SHORT, "optimizer.name = 'adamw'", "deepspeed.zero_stage = 0")
    return launches.shared(*settings, ranks=1, launcher=True).succeeded()


@pytest.fixture(scope="session")
def sharded_run(launches):
    """Two ranks at ZeRO 3."""
    settings = (*SHORT, "optimizer.name = 'adamw'", "deepspeed.zero_stage = 3")
    return launches.shared(*settings, ranks=2, launcher=True).succeeded()


# ---- check ---------------------------------------------------------------------------------------
def test_check_says_what_run10_is(mcframe, root):
    result = mcframe("check", root / "gin/run10.gin")
    assert result.exit_code == 0, result.output
    for figure in ("(185.6 M)", "1.04 G plain", "114,688 (56 sequences of 2,048)", "37,750, 4,329,472,000 tokens"):
        assert figure in result.output
    assert "2 a sequence, of 1,831 entries at the start" in result.output
    assert "LOD1: up to 17 in a context" in result.output
    assert "GiB on each of 1 rank(s)" in result.output
    assert "bound but unused" not in result.output
    for plugin in ("gistnet.transformer", "allocator.greedy", "text.huggingface", "tokenizer.bpe", "mcframe 0.1.0"):
        assert plugin in result.output


def test_check_knows_the_baseline(mcframe, root):
    result = mcframe("check", root / "gin/run10_baseline.gin")
    assert result.exit_code == 0, result.output
    assert "(185.6 M)" in result.output
    assert "GistNet" not in result.output
    assert "114,688" in result.output


def test_check_tells_of_what_nothing_reads(mcframe, smoke):
    result = mcframe("check", smoke, "--set", "fats/gpt.depth = 3")
    assert result.exit_code == 0, result.output
    assert "bound but unused: fats/gpt.depth (--set 'fats/gpt.depth = 3')" in result.output


def test_check_tells_of_ones_own_lines_and_not_of_a_presets(mcframe, tmp_path):
    (tmp_path / "mine.gin").write_text("include 'base.gin'\nrun.gistnet = @gistnet.mean\nlensnet.mlp.hidden = 6\n")
    (tmp_path / "base.gin").write_text("include 'smoke.gin'\nWIDTH = 3\n")
    result = mcframe("check", tmp_path / "mine.gin")
    assert result.exit_code == 0, result.output
    unused = [line.split()[3] for line in result.output.splitlines() if line.startswith("bound but unused")]
    assert sorted(unused) == ["WIDTH", "lensnet.mlp.hidden"]


def test_check_refuses_levels_that_never_occur_unless_allowed(mcframe, root):
    levels = ("--set", "context.levels = 2")
    result = mcframe("check", root / "gin/run10.gin", *levels)
    assert result.exit_code == 2
    assert "LOD 2 can never be used" in result.output
    allowed = mcframe("check", root / "gin/run10.gin", *levels, "--set", "context.allow_unused_levels = True")
    assert allowed.exit_code == 0, allowed.output
    assert "LOD2: up to 0" in allowed.output


@pytest.fixture
def lines_of_presets_are_told(monkeypatch):
    monkeypatch.setattr("mcframe.config.loader.preset_folders", list)


@pytest.mark.usefixtures("lines_of_presets_are_told")
@pytest.mark.parametrize("name", ["smoke", "quickstart", "gists", "recall", "recall_32", "recall_focus", "run10"])
def test_check_finds_nothing_unused_in_the_presets(mcframe, root, name):
    result = mcframe("check", root / f"gin/{name}.gin")
    assert result.exit_code == 0, result.output
    assert "bound but unused" not in result.output


@pytest.mark.usefixtures("lines_of_presets_are_told")
@pytest.mark.parametrize("name", ["smoke", "quickstart"])
def test_check_finds_nothing_unused_in_the_baselines_but_plug_ins(mcframe, root, name):
    baseline = mcframe("check", root / f"gin/{name}.gin", "--baseline")
    assert baseline.exit_code == 0, baseline.output
    unused = [line.split()[3] for line in baseline.output.splitlines() if line.startswith("bound but unused")]
    assert unused
    assert all(key.startswith(("gistnet.", "lensnet.", "variants.", "run.gistnet", "run.lensnet")) for key in unused)


def test_memory_falls_with_ranks_at_zero_3(mcframe, root):
    def size(ranks):
        at = mcframe("check", root / "gin/run10.gin", "--ranks", ranks, "--set", "deepspeed.zero_stage = 3").output
        return float(at.split("memory a rank")[1].split("│")[1].split()[0])

    assert size(8) < size(2) < size(1)


# ---- doctor --------------------------------------------------------------------------------------
def test_doctor_names_what_is_there_and_what_is_not(mcframe, monkeypatch, tmp_path):
    result = mcframe("doctor")
    assert "deepspeed" in result.output
    assert "plug-ins" in result.output
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lacking = mcframe("doctor")
    assert lacking.exit_code == 1
    assert "g++ was not found" in lacking.output
    assert "apt-get install g++" in lacking.output


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
def test_a_long_prompt_is_told_to_lose_its_beginning(mcframe, plain_run):
    result = mcframe("sample", plain_run.run_dir, "--prompt", "x" * 200, "--length", 1)
    assert result.exit_code == 0, result.output
    assert "of 200 tokens of the prompt the model reads the last 128" in result.output


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
    # The weights are what DeepSpeed itself wrote, not what they were before training.
    (file,) = find(plain_run.run_dir).path.glob("mp_rank_00_model_states.pt")
    written = torch.load(file, weights_only=False)["module"]
    assert all(torch.equal(written[f"model.{name}"], tensor) for name, tensor in plain.items())
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
def test_an_export_loads_where_there_is_no_deepspeed(mcframe, launches, sharded_run, tmp_path):
    file = tmp_path / "model.safetensors"
    assert mcframe("export", sharded_run.run_dir, "--out", file).exit_code == 0
    command = [sys.executable, "-c", WITHOUT_DEEPSPEED, str(file), str(tmp_path / "config.gin")]
    assert "All keys matched" in launches.execute(command).succeeded().output


def test_no_run_and_no_place_to_write(mcframe, tmp_path):
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
    # A token stands for several bytes here: bits a byte are not nats a token in other units.
    assert result.curve("val/bpb")[-1] < 0.7 * result.curve("val/loss")[-1] / 0.6931


def test_bytes_are_not_trained(mcframe, smoke):
    result = mcframe("tokenizer", "--gin", smoke)
    assert result.exit_code == 2
    assert "uses @tokenizer.bytes, which is not trained" in result.output


# ---- what a run leaves behind, and starting it again ---------------------------------------------
@launcher
def test_a_run_starts_again_from_its_operative_config(launches, plain_run):
    again = launches.run(gin=plain_run.run_dir / "operative.gin").succeeded()
    assert again.metrics == plain_run.metrics
    assert (again.run_dir / "operative.gin").read_text() == (plain_run.run_dir / "operative.gin").read_text()


@launcher
def test_everything_bound_gives_the_same_configuration_again(plain_run, smoke):
    settings = [*SHORT, "optimizer.name = 'adamw'", "deepspeed.zero_stage = 0"]
    wanted = load_run_config([smoke], settings).config.as_dict()
    assert load_run_config([plain_run.run_dir / "config.gin"], []).config.as_dict() == wanted


# Nothing learns (such steps are lost to rounding), so that the loss of the plain model tells which tokens a step read.
STILL = (
    "run.total_tokens = 6144",
    "logging.every = 1024",
    "validation.every = 2048",
    "optimizer.lr = 1e-30",
    "logging.wandb = 'offline'",
    "figures.every = 4096",
)


@launcher
def test_the_baseline_reads_the_same_tokens_in_the_same_order(launches):
    full = launches.shared(*STILL).succeeded()
    baseline = launches.run(*STILL, options=["--baseline"]).succeeded()
    derived = json.loads((baseline.run_dir / "provenance.json").read_text())["derived"]
    assert derived == {"--baseline": "run.variants = @variants.none"}
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
def test_what_a_person_sees(plain_run):
    lines = plain_run.output.splitlines()
    focused = [line for line in lines if line.startswith("focused ")]
    assert len(focused) >= 6  # three held-out windows, before training and at its end
    assert any("entries," in line and "gists" in line and "|" in line for line in focused)
    assert any(line.startswith("random ") for line in lines)
    progress = [line for line in lines if "tokens/s" in line and "ETA" in line and "loss" in line]
    assert len(progress) >= 4
    assert "6.14k/6.14k tokens" in progress[-1]
    words = plain_run.words
    assert "Run finished" in words
    for label in ("loss", "validation", "bits/byte", "ΔNLL after the cursor", "speed", "checkpoint", "metrics"):
        assert label in words.split("Run finished")[1]
    assert str(plain_run.run_dir / "metrics.jsonl") in words
    summary = plain_run.summary
    assert (summary["status"], summary["tokens"], summary["steps"]) == ("finished", 6144, 6)
    provenance = json.loads((plain_run.run_dir / "provenance.json").read_text())
    assert set(provenance["plugins"]) == {"mcframe"}


# ---- TensorBoard and wandb -----------------------------------------------------------------------
def wandb_reader(root):
    """The reader of .wandb files, from the tests of the logger."""
    spec = importlib.util.spec_from_file_location("wandb_reader", root / "tests/unit/metrics/test_wandb_logger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@launcher
def test_tensorboard_and_wandb_hold_the_metrics_under_their_names(launches, root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = launches.shared(*STILL).succeeded()
    expected = {}
    for line in (result.run_dir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name in set(entry) - {"tokens", "step", "time"}:
            expected[entry["tokens"], name] = entry[name]
    assert {"train/loss", "val/bpb", "mc/tail_delta", "mc/lod_loss/2"} <= {name for _, name in expected}

    events = EventAccumulator(str(result.run_dir / "tensorboard"))
    events.Reload()
    shown = {(event.step, name): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    assert shown == pytest.approx(expected)
    assert "working_contexts/text_summary" in events.Tags()["tensors"]

    reader = wandb_reader(root)
    (path,) = reader.offline_files(result.run_dir)
    rows = reader.history(reader.finished_records(path))
    logged = {
        (row["train/tokens"], name): value
        for row in rows
        for name, value in row.items()
        if (row["train/tokens"], name) in expected
    }
    assert logged == pytest.approx(expected)
    assert "wandb sync" in result.words
