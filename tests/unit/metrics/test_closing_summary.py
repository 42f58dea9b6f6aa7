import json
import math

from rich.console import Console

from mcframe.metrics.summary import summarise, summary_table, write_summary

FIRST = {"train/loss_lod0": 5.6, "val/bpb": 8.0123, "mc/tail_delta": 0.5}
LAST = {
    "train/loss_lod0": 2.25,
    "val/bpb": 3.1207,
    "mc/tail_delta": 0.0125,
    "mc/gist_entry_delta/1": 0.63,
    "mc/gist_entry_delta/2": 0.9,
    "mc/lod_delta/1": -0.002,
    "train/mfu": 0.0041,
    "a_plugin/figure": 7.0,
}


def example(**changes):
    values = {
        "status": "finished",
        "tokens": 4_329_472_000,
        "steps": 37_750,
        "session_tokens": 1_000_000,
        "session_seconds": 200.0,
        "first": FIRST,
        "last": LAST,
        "locations": {
            "checkpoint": "/runs/a/checkpoints/37750",
            "TensorBoard": "tensorboard --logdir /runs/a/tensorboard",
        },
    }
    return summarise(**(values | changes))


def rendered(summary, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(summary))
    return " ".join(console.export_text().replace("│", " ").split())


def test_table_has_results_and_locations():
    text = rendered(example())
    for expected in (
        "Run finished",
        "4,329,472,000 tokens in 37,750 steps",
        "loss 5.6000 → 2.2500 nats",
        "validation 8.0123 → 3.1207 bits/byte",
        "ΔNLL after the cursor +0.5000 → +0.0125 nats",
        "ΔNLL of gist entries, LOD1 +0.6300 nats",
        "ΔNLL of gist entries, LOD2 +0.9000 nats",
        "ΔNLL after gists, LOD1 -0.0020 nats",
        "speed 5,000 tokens/s",
        "MFU 0.41 % of the device's peak",
        "wall time 0:03:20",
        "checkpoint /runs/a/checkpoints/37750",
        "TensorBoard tensorboard --logdir /runs/a/tensorboard",
    ):
        assert expected in text


def test_table_of_a_run_without_metrics():
    text = rendered(
        example(status="interrupted", session_tokens=0, session_seconds=0.0, first={}, last={}, locations={})
    )
    assert "Run interrupted" in text
    assert "tokens/s" not in text
    assert "ΔNLL" not in text


def test_the_file_is_strict_json(tmp_path):
    summary = example(last=LAST | {"train/loss_lod0": math.nan}, locations={"checkpoint": tmp_path})
    path = write_summary(tmp_path, summary)
    assert path == tmp_path / "summary.json"
    read = json.loads(path.read_text("utf-8"), parse_constant=lambda name: 1 / 0)
    assert read["last"].pop("train/loss_lod0") is None
    assert read["last"] == {name: value for name, value in LAST.items() if name != "train/loss_lod0"}
    assert read["locations"] == {"checkpoint": str(tmp_path)}
    assert read["tokens_per_second"] == 5000.0


def test_paths_are_never_cut(tmp_path):
    long = "/" + "directory/" * 20 + "checkpoint"
    text = rendered(example(locations={"checkpoint": long}), width=60)
    assert long in text.replace(" ", "")
