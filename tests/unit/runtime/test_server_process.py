"""A server in a process of its own: killed and started again, and under load."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.serving import NAME, serving

SOAK_S = 60.0


def _serve(folder: Path, addresses, limits) -> None:
    with serving(folder, **limits) as (address, _):
        addresses.send(address)
        signal.pause()


@contextmanager
def process(folder: Path, **limits: float) -> Iterator[tuple[str, multiprocessing.Process]]:
    """Run a server in a forked process, which is killed at the end."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=(folder, sender, limits))
    server.start()
    try:
        assert receiver.poll(30)
        yield receiver.recv(), server
    finally:
        server.kill()
        server.join()


def continued(address: str, session: str, prompt: str = "b", tokens: int = 30) -> str:
    import openai  # takes a second, also of processes that collect this test and do not run it

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        options = {"model": NAME, "max_tokens": tokens, "temperature": 0, "extra_body": {"session": session}}
        return client.completions.create(prompt=prompt, **options).choices[0].text


def test_a_server_that_is_killed_continues_its_sessions(tmp_path):
    import openai

    prompts = ["a" * 150, "bc"]
    with process(tmp_path / "undisturbed") as (address, _):
        expected = [continued(address, "s", prompt) for prompt in prompts]
    found = []
    for prompt in prompts:
        with process(tmp_path / "killed") as (address, server):
            found.append(continued(address, "s", prompt))
            with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                options = {"model": NAME, "max_tokens": 3000, "temperature": 0, "stream": True}
                stream = client.completions.create(prompt="lost", **options, extra_body={"session": "s"})
                next(iter(stream))
                server.kill()  # SIGKILL while the session generates
    assert found == expected


@pytest.mark.matrix
def test_sixteen_clients_for_a_minute(tmp_path):
    import openai

    with process(tmp_path, sessions=100_000) as (address, server):
        found, sizes = psutil.Process(server.pid), []
        end = time.monotonic() + SOAK_S

        def client(number: int) -> int:
            count = 0
            with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as api:
                while time.monotonic() < end:
                    kept = {"session": f"client-{number}-{count // 20}"} if number % 2 else {}
                    options = {"model": NAME, "max_tokens": 20, "temperature": 0, "extra_body": kept}
                    if number % 4 < 2:
                        assert list(api.completions.create(prompt="a" * 30, stream=True, **options))
                    else:
                        messages = [{"role": "user", "content": "abc"}]
                        assert api.chat.completions.create(messages=messages, **options).choices
                    count += 1
            return count

        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client, number) for number in range(16)]
            while time.monotonic() < end:
                sizes.append(found.memory_info().rss / 2**20)
                time.sleep(1)
            counts = [each.result() for each in clients]
    third = len(sizes) // 3
    early, late = max(sizes[third : 2 * third]), max(sizes[2 * third :])
    print(f"{sum(counts)} requests; memory {sizes[0]:.0f} MiB, then {early:.0f}, at last {late:.0f}")
    assert min(counts) > 0
    assert late < 1.05 * early
