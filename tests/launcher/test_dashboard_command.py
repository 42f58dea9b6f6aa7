"""Dashboards that a user can load: TensorBoard's server, wandb's file of an offline run, wandb's workspace library."""

import http.server
import io
import json
import re
import subprocess
import sys
import threading
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.metrics.dashboard import GROUPS, matching
from mcframe.metrics.figure_data import rows
from mcframe.metrics.tensorboard_logger import write_layout
from tests.support.wandb_file import finished_records, history, offline_files

PANELS = [panel for panels in GROUPS.values() for panel in panels]
PICTURES = {"pictures/contexts", "pictures/lens", "pictures/gist_cost"}


@pytest.fixture(scope="module")
def trained(untrained_run):
    return untrained_run


def mcframe(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def lines(run_dir, file):
    return [json.loads(line) for line in (run_dir / file).read_text().splitlines()]


def distributions(run_dir):
    """Return (tokens, name) -> edges and counts from the file that the figures are drawn from."""
    found = {}
    for line in lines(run_dir, "pictures.jsonl"):
        for name, counts in line["counts"].items():
            edges = line["edges"].get(name) or line["edges"].get(name.rpartition("/")[0])
            if edges:
                found[line["tokens"], name] = (edges, counts)
    return found


# ---- TensorBoard ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served(trained):
    """Query a TensorBoard server that shows the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(trained.run_dir / "tensorboard")]
    command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false", "--reload_interval", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output = ""
        for line in process.stdout:
            output += line
            if found := re.search(r"at (http://127.0.0.1:\d+)/", line):
                break
        else:
            pytest.fail(output)

        def query_server(route, **options):
            query = urllib.parse.urlencode(options)
            with urllib.request.urlopen(f"{found[1]}/data/plugin/{route}?{query}", timeout=60) as answer:
                return answer.read()

        yield query_server
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.launcher
def test_tensorboard_serves_the_layout_and_the_curves_of_its_charts(trained, served):
    layout = json.loads(served("custom_scalars/layout"))
    shown = {
        category["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
        for category in layout["category"]
    }
    assert shown == {group: {panel.title: [panel.regex] for panel in panels} for group, panels in GROUPS.items()}
    names = {name for line in lines(trained.run_dir, "metrics.jsonl") for name in line}
    drawn = 0
    for panel in PANELS:
        answer = json.loads(served("custom_scalars/scalars", run=".", tag=panel.regex))
        assert answer["regex_valid"]
        assert sorted(answer["tag_to_events"]) == sorted(matching(panel.metrics, names))
        drawn += len(answer["tag_to_events"])
    assert drawn > 25


@pytest.mark.launcher
def test_tensorboard_serves_pictures_and_distributions(trained, served):
    tags = json.loads(served("images/tags"))["."]
    assert set(tags) == PICTURES
    for name in PICTURES:
        samples = json.loads(served("images/images", run=".", tag=name, sample=0))
        assert [sample["step"] for sample in samples] == [4096, 6144]
        query = dict(urllib.parse.parse_qsl(samples[-1]["query"]))
        pixels = np.asarray(Image.open(io.BytesIO(served("images/individualImage", **query))))
        kept = Image.open(trained.run_dir / f"{name}.png").convert("RGB")
        assert np.array_equal(pixels, np.asarray(kept))
    expected = distributions(trained.run_dir)
    assert set(json.loads(served("histograms/tags"))["."]) == {name for _, name in expected}
    for _, tokens, buckets in json.loads(served("histograms/histograms", run=".", tag="mc/lens_score/0")):
        _, counts = expected[tokens, "mc/lens_score/0"]
        assert sum(count for _, _, count in buckets) == pytest.approx(sum(counts))
    text = json.loads(served("text/text", run=".", tag="working_contexts/text_summary"))
    assert text[-1]["step"] == 6144
    assert re.search(r"<pre><code>· 4 raw tokens .*\nfocused [·12|]+  \d+ of 128", text[-1]["text"])


@pytest.mark.launcher
def test_a_missing_layout_is_written(trained, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / "run" / "tensorboard"
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("train/loss", 1.0, global_step=5)
    answer = mcframe("dashboard", "tensorboard", tmp_path / "run")
    assert (answer.exit_code, answer.output) == (0, f"tensorboard --logdir {folder}\n")
    assert write_layout(folder) == folder
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["tensors"] == ["custom_scalars__config__"]
    assert [event.step for event in events.Scalars("train/loss")] == [5]
    refused = mcframe("dashboard", "tensorboard", tmp_path / "elsewhere")
    assert refused.exit_code == 2
    assert "holds no event files" in refused.output


# ---- wandb ---------------------------------------------------------------------------------------
@pytest.mark.launcher
def test_tensorboard_and_wandb_hold_the_metrics_under_their_names(trained):
    expected = {}
    for line in (trained.run_dir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name in set(entry) - {"tokens", "step", "time"}:
            expected[entry["tokens"], name] = entry[name]
    assert {"train/loss", "val/bpb", "mc/tail_delta", "mc/lod_loss/2"} <= {name for _, name in expected}

    events = EventAccumulator(str(trained.run_dir / "tensorboard"))
    events.Reload()
    shown = {(event.step, name): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    assert shown == pytest.approx(expected)
    assert "working_contexts/text_summary" in events.Tags()["tensors"]

    (path,) = offline_files(trained.run_dir)
    rows = history(finished_records(path))
    logged = {
        (row["train/tokens"], name): value
        for row in rows
        for name, value in row.items()
        if (row["train/tokens"], name) in expected
    }
    assert logged == pytest.approx(expected)
    assert "wandb sync" in trained.text


@pytest.mark.launcher
def test_the_offline_run_of_wandb_holds_the_dashboards_keys_distributions_and_pictures(trained):
    (path,) = offline_files(trained.run_dir)
    logged = history(finished_records(path))
    keys = {key for row in logged for key in row}
    names = {name for line in lines(trained.run_dir, "metrics.jsonl") for name in line}
    for panel in PANELS:
        assert set(matching(panel.metrics, names)) <= keys
    expected = {
        "mc/other_ms", "mc/variant_pack_ms", "mc/lod_delta/1", "mc/adv_delta_mean", "train/tokens_per_step",
        "mc/preference_corr_mean",
    }  # fmt: skip
    assert expected <= keys & {name for panel in PANELS for name in matching(panel.metrics, names)}

    found = {
        (row["train/tokens"], key.removesuffix("/_type")): (row[key[:-5] + "bins"], row[key[:-5] + "values"])
        for row in logged
        for key, kind in row.items()
        if key.endswith("/_type") and kind == "histogram"
    }
    assert found == distributions(trained.run_dir)
    for name in PICTURES:
        shown = [(row["train/tokens"], row[f"{name}/path"]) for row in logged if f"{name}/path" in row]
        assert [tokens for tokens, _ in shown] == [4096, 6144]
        kept = np.asarray(Image.open(trained.run_dir / f"{name}.png").convert("RGB"))
        assert np.array_equal(np.asarray(Image.open(path.parent / "files" / shown[-1][1])), kept)
    pages = [row["working_contexts/path"] for row in logged if "working_contexts/path" in row]
    assert re.search(r"<pre>· 4 raw tokens .*\nfocused ", (path.parent / "files" / pages[-1]).read_text())


class Answering(http.server.BaseHTTPRequestHandler):
    """The part of wandb's server that saving a view needs."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body) if self.path == "/graphql" else {}
        if "upsertView" in request.get("query", ""):
            self.server.saved.append(request["variables"])
        viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        variables = request.get("variables")
        view = {"id": "Vmlldzox", "name": variables.get("name")} if variables else None
        self._send({"data": {"viewer": viewer, "upsertView": {"view": view, "inserted": True}}})

    def do_GET(self):
        self._send({})

    def _send(self, answer):
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.saved = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.launcher
def test_the_workspace_of_a_run_is_saved_by_wandbs_own_library(trained, launches, server, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="pip install wandb-workspaces")
    file = tmp_path / "panels.py"
    answer = mcframe("dashboard", "wandb", trained.run_dir, "--out", file)
    assert (answer.exit_code, answer.output.splitlines()[-1]) == (0, f"python {file} ENTITY/PROJECT")
    usage = launches.execute([sys.executable, str(file), "nothing"])
    assert (usage.code, usage.text) == (1, f"usage: python {file} ENTITY/PROJECT")
    address = f"http://127.0.0.1:{server.server_port}"
    saved = launches.execute(
        [sys.executable, str(file), "me/models"], environment={"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
    ).succeeded()
    assert f"{address}/me/models?nw=" in saved.text
    (view,) = server.saved
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "models", "mcframe")
    spec = json.loads(view["spec"])
    sections = spec["section"]["panelBankConfig"]["sections"]
    panels = {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}
    assert {config["xAxis"] for name in GROUPS for config in panels.get(name, [])} == {"train/tokens"}
    shown = {name for configs in panels.values() for config in configs for name in config.get("metrics", [])}
    names = {name for line in lines(trained.run_dir, "metrics.jsonl") for name in line}
    assert shown >= {name for panel in PANELS for name in matching(panel.metrics, names)}
    assert shown >= {name for _, name in distributions(trained.run_dir)}
    assert [key for config in panels["Pictures"] for key in config["mediaKeys"]] == [
        "pictures/contexts", "pictures/lens", "pictures/gist_cost", "working_contexts",
    ]  # fmt: skip


def test_a_workspace_without_a_run_and_refusals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mcframe("dashboard", "wandb").exit_code == 0
    compile((tmp_path / "wandb_dashboard.py").read_text("utf-8"), "wandb_dashboard.py", "exec")
    (tmp_path / "file").touch()
    for arguments, message in (
        ((tmp_path,), "metrics.jsonl"),
        (("--out", tmp_path / "file" / "a.py"), "cannot be written"),
    ):
        refused = mcframe("dashboard", "wandb", *arguments)
        assert refused.exit_code == 2
        assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", refused.output).split())


def test_distributions_keep_their_metric_names():
    assert list(rows({"mc/variant_delta": np.ones((1, 3), np.int64)})) == ["mc/variant_delta"]
