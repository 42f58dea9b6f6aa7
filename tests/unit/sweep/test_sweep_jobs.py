"""Commands side by side: order, failures, interruption. The commands are small Python programs."""

import os
import signal
import sys
import threading
import time

import pytest

from mcframe.sweep import jobs as jobs_module
from mcframe.sweep.jobs import Job, Jobs, Ports, last_lines

# Saves on the first signal, as a run does.
PATIENT = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1]).write_text("saved"); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(jobs_module, "_POLL_S", 0.02)


@pytest.fixture
def job(tmp_path):
    def of(name, source, after=(), done=None):
        mark = tmp_path / f"{name}.mark"
        command = [sys.executable, "-c", source, str(mark)]
        return Job(name, lambda: (command, {"NAMED": name}), tmp_path / name / "log.txt", done or mark.exists, after)

    return of


def write(seconds=0.0):
    return f"import pathlib, sys, time; time.sleep({seconds}); pathlib.Path(sys.argv[1]).touch(); print('written')"


def run(jobs, parallel=1, watch=lambda: None):
    history = []
    queue = Jobs(
        jobs, parallel=parallel, environment=dict(os.environ), changed=lambda j: history.append((j.name, j.state))
    )
    queue.run(watch)
    return queue, history


def test_one_after_the_other(job):
    _, history = run([job("a", write()), job("b", write())])
    assert history == [("a", "running"), ("a", "done"), ("b", "running"), ("b", "done")]


def test_at_most_two_run_in_parallel(job):
    jobs, most = [job(name, write(0.3)) for name in "abc"], []
    _, history = run(jobs, 2, lambda: most.append(sum(each.state == "running" for each in jobs)))
    assert history[:2] == [("a", "running"), ("b", "running")]
    assert max(most) == 2
    assert all(each.state == "done" and each.seconds >= 0.25 for each in jobs)


def test_job_waits_for_those_that_it_needs(job):
    first = job("a", write(0.5))
    _, history = run([job("b", write(), [first]), first, job("c", write())], 3)
    assert history.index(("b", "running")) > history.index(("a", "done"))
    assert history.index(("c", "running")) < history.index(("a", "done"))


def test_failure_skips_the_jobs_that_need_it_and_no_others(job):
    failing = job("a", "print('first'); print(); print('what went wrong\\rthe end')")  # exit code 0, yet no result
    below = job("b", write(), [failing])
    jobs = [failing, below, job("c", write(), [below]), job("d", write())]
    run(jobs)
    assert [each.state for each in jobs] == ["failed", "skipped", "skipped", "done"]
    assert last_lines(failing.log, 2) == ["what went wrong", "the end"]
    assert last_lines(below.log, 2) == []


def test_environment_and_log_of_a_job(job):
    each = job("a", "import os, sys; print(os.environ['NAMED'], sys.stdin.read() == '')")
    each.log.parent.mkdir()
    each.log.write_text("before\n")
    run([each])
    assert last_lines(each.log, 5) == ["before", "a True"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_lets_running_jobs_save_and_starts_no_others(job, number):
    jobs = [job(name, PATIENT, done=lambda: False) for name in "abc"]
    began, handler = time.monotonic(), signal.getsignal(number)

    def watch():
        if all("ready" in last_lines(each.log, 1) for each in jobs[:2]) and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    sent = []
    queue, _ = run(jobs, 2, watch)
    assert queue.stopped_by == number
    assert [each.state for each in jobs] == ["interrupted"] * 3
    saved = [each.log.parent.with_suffix(".mark").exists() for each in jobs]
    assert saved == [True, True, False]
    assert time.monotonic() - began < 20
    assert signal.getsignal(number) is handler


def test_processes_of_an_ended_launcher_are_waited_for(job):
    child = write(0.5)
    launcher = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]])"
    each = job("a", launcher)
    run([each])
    assert each.state == "done"
    assert each.seconds >= 0.45


def test_jobs_are_killed_after_an_error(job):
    each = job("a", PATIENT)

    def watch():
        if last_lines(each.log, 1) == ["ready"]:
            raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError, match="the display broke"):
        run([each], watch=watch)
    assert each.process.wait(timeout=10) == -signal.SIGKILL


def test_ports_are_returned_once():
    ports = Ports()
    returned: list[int] = []
    threads = [threading.Thread(target=lambda: returned.append(ports.next())) for _ in range(50)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(set(returned)) == 50
