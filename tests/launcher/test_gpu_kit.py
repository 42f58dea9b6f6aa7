"""The GPU kit on a CPU: its commands, its limits, a rehearsal with tiny sizes, and the section that it writes."""

import io
import json
import re
import subprocess
import sys
import time
from dataclasses import fields
from importlib import import_module
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from mcframe.cli.run_options import arguments
from mcframe.config.run_config import load_run_config
from mcframe.config.schema import RunConfig
from mcframe.training.callbacks.profile import _table
from tests.support.launches import ROOT

pytestmark = pytest.mark.launcher
kit, parts, report = (import_module(f"benchmarks.gpu.{name}") for name in ("kit", "parts", "report"))
NAMES = ["doctor", "smoke", "run10", "baseline", "bench", "compiled", "profile", "micro_batch", "decode"]


def python(code):
    return [sys.executable, "-c", code]


def fails(outputs):
    raise KeyError("tokens")


def test_a_part_that_fails_or_takes_too_long_is_recorded_and_the_next_runs(tmp_path):
    chosen = [
        parts.Part("broken", [python("print('why'); raise SystemExit(3)")], 30),
        parts.Part("slow", [python("import subprocess; subprocess.run(['sleep', '61.7'])")], 1),
        parts.Part("unread", [python("print(1)")], 30, fails),
        parts.Part(
            "two", [python("print(1)"), python("print(2)")], 30, lambda outputs: {"sum": sum(map(int, outputs))}
        ),
    ]
    started = time.monotonic()
    assert kit.run_parts(chosen, tmp_path, 60, {}) == 1
    assert time.monotonic() - started < 50
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))["parts"]
    assert [part["status"] for part in results] == ["failed", "timeout", "failed", "ok"]
    assert results[0]["codes"] == [3]
    assert "why" in results[0]["tail"]
    assert "no figures: KeyError: 'tokens'" in results[2]["tail"]
    assert results[3]["figures"] == {"sum": 3}
    assert not [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "61.7"]]


def test_no_part_starts_after_the_limit_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(kit, "_LEAST_S", 0.5)
    chosen = [parts.Part(name, [python("import time; time.sleep(60)")], 40) for name in ("first", "second")]
    assert kit.run_parts(chosen, tmp_path, 1, {}) == 1
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))["parts"]
    assert [part["status"] for part in results] == ["timeout", "skipped"]


@pytest.mark.parametrize("tiny", [False, True])
def test_every_command_has_options_and_settings_that_exist(tmp_path, tiny):
    every = parts.parts(tmp_path, tiny)
    assert [part.name for part in every] == NAMES
    for part in every:
        for command in part.commands:
            if "--gin" in command or "bench" in command:
                check_settings(command)


def check_settings(command):
    at = command.index("run" if "--gin" in command else "bench")
    rest = command[at + 1 :]
    if "--gin" in rest:
        options = arguments().parse_args(rest)
        files, settings = options.gin, options.set
    else:
        files, settings = rest[:1], [rest[at + 1] for at, option in enumerate(rest) if option == "--set"]
    known = {field.name for field in fields(RunConfig)}
    settings = [each for each in settings if "run.compile" not in each or "compile" in known]
    run_config = load_run_config([ROOT / file for file in files], settings).run_config
    assert run_config.steps >= 6


def test_run10_of_the_kit_is_run10_on_local_text():
    settings = load_run_config([ROOT / parts.GIN], []).config.as_dict()
    assert settings["run.text"] == "@text.standard_library"
    assert settings["gpt.vocab_size"] == 65_536
    assert settings["run.total_steps"] == 60
    assert kit.LIMIT_S < 360


def test_operations_are_read_from_the_table_of_a_profile():
    names = [
        "aten::mm",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >(int, float)",
    ]
    events = [
        SimpleNamespace(key=name, count=1234, self_device_time_total=5000.0 / (number + 1))
        for number, name in enumerate(names)
    ]
    console = Console(file=io.StringIO(), width=240)
    console.print(_table(events, cuda=True))
    first, second = parts.top_operations(console.file.getvalue())
    assert first == {"operation": names[0], "calls": 1234, "ms": 5.0, "fraction": "66.7 %"}
    assert second["operation"] == names[1]
    assert parts.top_operations("no table") == []


def rehearse(folder, *options):
    command = ["benchmarks/gpu/run.sh", str(folder), "--rehearse", "--limit", "1800", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert "Traceback" not in done.stderr, done.stderr
    results = json.loads((folder / "results.json").read_text("utf-8"))
    return results, {part["name"]: part for part in results["parts"]}


@pytest.fixture
def patient(monkeypatch, launches):
    """Variables of the kit's processes."""
    for name, value in launches.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHON", sys.executable)


def checked(results):
    """Check the figures and the section of the parts run10 and decode."""
    own = {part["name"]: part for part in results["parts"]}
    assert {name: part["status"] for name, part in own.items()} == {"run10": "ok", "decode": "ok"}, results
    figures = own["run10"]["figures"]
    assert figures["train/tok_per_sec"] > 0
    assert figures["loss_last"] < figures["loss_first"]
    assert figures["micro_batch"] == 4
    assert own["decode"]["figures"]["ms_per_token"] > 0
    text = report.section(results)
    assert text.startswith("**Rehearsal")
    assert re.search(r"\| tokens/s \| [\d,]+ \|", text)
    assert "a generated token" in text


def test_figures_of_training_and_decoding(tmp_path, launches, monkeypatch, capsys):
    """The two commands of a rehearsal without the start of interpreters."""
    train, decode = (part for part in parts.parts(tmp_path, True) if part.name in ("run10", "decode"))
    (command,), (decoding,) = train.commands, decode.commands
    at = len(parts.MCFRAME) + 1
    assert (*parts.MCFRAME, "run", "--gin") == tuple(command[: at + 1])
    options = arguments().parse_args(command[at:])
    run_dir = options.run_dir
    trained = launches.run(*options.set, gin=options.gin[0], run_dir=run_dir, options=["--resume", "never"]).succeeded()
    monkeypatch.setattr(sys, "argv", decoding[2:])
    import_module(decoding[2]).main()
    results = [
        {"name": part.name, "status": "ok", "seconds": 1.0, "figures": part.figures([output]), "tail": ""}
        for part, output in ((train, trained.output), (decode, capsys.readouterr().out))
    ]
    checked({"machine": {"error": "not read"}, "started": "now", "rehearsal": True, "parts": results})


@pytest.mark.matrix
def test_the_rehearsal_trains_and_decodes(tmp_path, patient):
    results, _ = rehearse(tmp_path, "--only", "run10", "--only", "decode")
    checked(results)


@pytest.mark.matrix
def test_the_complete_rehearsal(tmp_path, patient):
    results, own = rehearse(tmp_path)
    expected = dict.fromkeys(NAMES, "ok")
    if "compile" not in {field.name for field in fields(RunConfig)}:
        expected["compiled"] = "failed"
    assert {name: part["status"] for name, part in own.items()} == expected, json.dumps(results, indent=1)[-8000:]
    assert own["micro_batch"]["figures"]["micro_batch"] == 8
    assert len(own["profile"]["figures"]["operations"]) == 10
    assert own["bench"]["figures"]["rows"][0]["figures"]["step/floor"] > 0.8
    assert set(own["smoke"]["figures"]) == {"loss_zero_0", "loss_zero_3"}
    assert "aten::" in report.section(results)


def test_the_section_names_the_gap_to_the_goal_and_what_failed(tmp_path):
    figures = {"step_ms": 200.0, "baseline_ms": 60.0, "step/baseline": 3.3, "flops/baseline": 3.3, "step/floor": 1.4,
               "floor_ms": 400 / 3, "mfu": 0.3}  # fmt: skip
    own = {name: {"name": name, "status": "ok", "seconds": 9.0, "figures": {}, "tail": ""} for name in NAMES}
    own["bench"]["figures"] = {"rows": [{"figures": figures}]}
    own["compiled"] |= {"status": "failed", "tail": "│ run has no setting compile │\n╰────╯"}
    machine = {"device": "NVIDIA H100", "memory_gib": 79.6, "torch": "2.13", "deepspeed": "0.19.8", "revision": "abc"}
    text = report.section(
        {"machine": machine, "started": "2026-01-01T00", "rehearsal": False, "parts": list(own.values())}
    )
    assert "NVIDIA H100, 80 GiB, torch 2.13" in text
    assert "MFU of a step is 0.300, the goal 0.45. Its networks alone reach 0.450 of the peak" in text
    assert "| eager | 200.0 | 60.0 | 3.30 | 3.30 | 1.40 |" in text
    assert "`compiled`, failed: run has no setting compile" in text
