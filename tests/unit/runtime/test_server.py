"""The server, over loopback, with OpenAI's own client."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mcframe.runtime.sampling import Sampling
from tests.support.runtime_models import Digits
from tests.support.serving import NAME, opener, serving

DRAWN = Sampling(seed=11)
TURN = {"role": "user", "content": "one two three"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sessions"), sessions=40, open_sessions=2, body_bytes=100_000, tokens=500) as (
        address, found,
    ):  # fmt: skip
        yield address, found


@pytest.fixture(scope="module")
def client(server):
    import openai  # takes a second

    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as found:
        yield found


def expected(prompt: str, count: int, seed: int = 11) -> str:
    """The text after a prompt, from a session without a server."""
    session = opener()(None)
    session.append([Digits.separator, *Digits().encode_batch([prompt])[0]])
    return "".join(piece.text for piece in session.generate(count, Sampling(seed=seed)))


def complete(client, prompt, count=12, **options):
    return client.completions.create(model=NAME, prompt=prompt, max_tokens=count, **{"seed": 11, **options})


def test_openai_client_completes_and_streams_the_text_of_a_session(client):
    assert [model.id for model in client.models.list()] == [NAME]
    answer = complete(client, "a prompt", logprobs=2)
    text = expected("a prompt", 12)
    assert answer.choices[0].text == text
    assert answer.usage.prompt_tokens == 8
    assert answer.usage.completion_tokens == len(answer.choices[0].logprobs.tokens)
    assert all(len(top) == 2 for top in answer.choices[0].logprobs.top_logprobs)
    chunks = [*complete(client, "a prompt", stream=True, stream_options={"include_usage": True})]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in ("length", "stop")
    assert chunks[-1].usage == answer.usage


def test_prompts_and_choices_are_numbered(client):
    answer = complete(client, ["a", "bc"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [
        expected(p, 12, seed) for p in ("a", "bc") for seed in (11, 12)
    ]
    ids = Digits().encode_batch(["bc"])[0]
    assert complete(client, ids).choices[0].text == expected("bc", 12)


def test_a_seed_repeats_the_text(client):
    texts = [
        client.completions.create(model=NAME, prompt="a", max_tokens=20, seed=seed).choices[0].text
        for seed in (5, 5, 6, -1)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_openai_client_streams_chats(client):
    options = {"model": NAME, "messages": [TURN], "max_tokens": 10, "seed": 11}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
    text = expected("User: one two three\nAssistant:", 10)
    assert answer.choices[0].message.content == text.lstrip()
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3
    chunks = [*client.chat.completions.create(**options, stream=True)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


def test_a_session_continues_and_shows_its_context(client, server):
    extra = {"session": "story", "report": True}
    first = complete(client, "a" * 200, extra_body=extra)
    second = complete(client, "bc", extra_body=extra)
    assert second.choices[0].text != expected("bc", 12)
    report = second.model_extra["mcframe"]
    generated = first.usage.completion_tokens + second.usage.completion_tokens
    assert report["report"]["history"] == 1 + 200 + 2 + generated
    covered = sum(tokens for _, _, tokens, _ in report["context"])
    assert covered + report["report"]["dropped"] == report["report"]["history"]
    shown = httpx.get(f"{server[0]}/v1/sessions/story").json()
    assert shown["tokens"] == report["report"]["history"]
    assert shown["context"] == report["context"]


def test_a_chat_may_send_all_messages_or_new_ones(client):
    import openai  # takes a second

    def send(session, messages):
        answer = client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=8, seed=11, extra_body={"session": session}
        )
        return answer.choices[0].message, answer.usage.prompt_tokens

    second = {"role": "user", "content": "four"}
    reply, _ = send("all", [TURN])
    complete_text, tokens = send("all", [TURN, reply, second])
    send("new", [TURN])
    assert send("new", [second]) == (complete_text, tokens)
    with pytest.raises(openai.ConflictError, match="messages: expected new messages alone"):
        send("all", [TURN, {"role": "assistant", "content": "never"}, second])
    assert send("all", [TURN, reply, second, complete_text, second])[1] == tokens  # the refused request left nothing


def test_two_sessions_at_once_never_mix(client):
    def story(name):
        parts = [
            complete(client, f"{name}{part}", extra_body={"session": f"mix-{name}"}).choices[0].text
            for part in range(3)
        ]
        return "".join(parts)

    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(story, "abc")]
    for name, text in zip("abc", found, strict=True):
        session, complete_text = opener()(None), ""
        session.append([Digits.separator])
        for part in range(3):
            session.append(f"{name}{part}")
            complete_text += "".join(piece.text for piece in session.generate(12, DRAWN))
        assert text == complete_text


def test_sessions_outlive_the_server_even_when_others_are_open(tmp_path):
    import openai  # takes a second

    def story_of(address, name):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return complete(client, "b", extra_body={"session": name}).choices[0].text

    with serving(tmp_path / "one") as (address, _):
        complete_text = [story_of(address, "s") for _ in range(4)]
    parts = []
    for _ in range(2):
        with serving(tmp_path / "two", open_sessions=1) as (address, _):
            parts += [story_of(address, "s")]
            story_of(address, "other")  # closes the first
            parts += [story_of(address, "s")]
    assert parts == complete_text


def test_sessions_are_listed_and_deleted(client, server):
    complete(client, "a", extra_body={"session": "short-lived"})
    assert "short-lived" in [each["id"] for each in httpx.get(f"{server[0]}/v1/sessions").json()["data"]]
    assert httpx.delete(f"{server[0]}/v1/sessions/short-lived").json()["deleted"]
    assert httpx.get(f"{server[0]}/v1/sessions/short-lived").status_code == 404
    assert not (server[1].served.store.folder / "short-lived").exists()
    assert complete(client, "a", extra_body={"session": "short-lived"}).usage.prompt_tokens == 1


def test_a_client_that_disconnects_frees_its_slot(tmp_path):
    body = {"model": NAME, "prompt": "a", "max_tokens": 4000, "stream": True, "session": "long", "temperature": 0}
    with serving(tmp_path, concurrent=1) as (address, server):
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # closes the stream when it is collected
            next(lines)
            busy = httpx.post(f"{address}/v1/completions", json={"model": NAME, "prompt": "a"})
            assert (busy.status_code, busy.json()["error"]["type"]) == (429, "rate_limit_error")
        _wait(lambda: server.running == 0)
        assert httpx.post(f"{address}/v1/completions", json={"model": NAME, "prompt": "a"}).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json={**body, "stream": False}, timeout=0.3)
        _wait(lambda: server.running == 0)


def _wait(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_limits(tmp_path):
    def post(address, **body):
        answer = httpx.post(f"{address}/v1/completions", json={"model": NAME, "prompt": "a", **body}, timeout=30)
        return answer.status_code, answer.json()

    with serving(tmp_path, sessions=1, body_bytes=1000, seconds=0.5, tokens=100_000) as (address, _):
        assert post(address, session="one")[0] == 200
        status, answer = post(address, session="two")
        assert (status, answer["error"]["code"]) == (429, "too_many_sessions")
        assert post(address, prompt="a" * 2000)[0] == 413
        begin = time.monotonic()
        status, answer = post(address, max_tokens=100_000, temperature=0)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
        assert time.monotonic() - begin < 5


def test_a_server_without_a_key_has_the_names_of_this_machine(server):
    for host, status in (("localhost:80", 200), ("[::1]:80", 200), ("127.0.0.1", 200), ("evil.example", 403)):
        assert httpx.get(f"{server[0]}/health", headers={"Host": host}).status_code == status, host


def test_key_and_origin(tmp_path):
    import openai  # takes a second

    with serving(tmp_path, key="sécret") as (address, _):
        with (
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        right = {"Authorization": "Bearer sécret".encode()}
        for path, headers, status in (
            ("/v1/models", right, 200), ("/v1/models", {}, 401), ("/metrics", {}, 401), ("/", {}, 200),
            ("/health", {}, 200), ("/health", {"Host": "example"}, 200),
            ("/v1/models", {**right, "Origin": "http://evil.example"}, 403),
            ("/v1/models", {**right, "Origin": address}, 200),
        ):  # fmt: skip
            assert httpx.get(address + path, headers=headers).status_code == status, (path, headers)


def test_metrics(client, server):
    complete(client, "a")
    text = httpx.get(f"{server[0]}/metrics").text
    assert 'mcframe_requests_total{endpoint="/v1/completions",status="200"}' in text
    for name in ("tokens_generated_total", "first_token_seconds_bucket", "last_swap_rate", "last_residency_refocuses"):
        assert f"mcframe_{name}" in text


GOOD = {"model": NAME, "prompt": "a"}
CHAT = {"model": NAME, "messages": [TURN]}
BAD_COMPLETIONS = [
    (b"", "body"), (b"{", "body"), (b"[]", "body"), (b"null", "body"), (b'"a"', "body"), (b"\xff\xfe", "body"),
    (b"[" * 5000, "body"), (b'{"model": "\\ud800"}', "body"), (b'{"model": NaN}', "model"),
    ({}, "model"), ({"prompt": "a"}, "model"), ({"model": NAME}, "prompt"), ({**GOOD, "model": 1}, "model"),
    ({**GOOD, "model": "other"}, "model"), ({**GOOD, "prompt": 5}, "prompt"), ({**GOOD, "prompt": []}, "prompt"),
    ({**GOOD, "prompt": [1.5]}, "prompt"), ({**GOOD, "prompt": [-1]}, "prompt"),
    ({**GOOD, "prompt": [True]}, "prompt"),
    ({**GOOD, "prompt": [10**6]}, "prompt"), ({**GOOD, "prompt": [10**30]}, "prompt"),
    ({**GOOD, "prompt": ["a", 1]}, "prompt"), ({**GOOD, "prompt": {"a": 1}}, "prompt"),
    ({**GOOD, "prompt": ["a"] * 17}, "prompt"), ({**GOOD, "max_tokens": 0}, "max_tokens"),
    ({**GOOD, "max_tokens": -3}, "max_tokens"), ({**GOOD, "max_tokens": 1.5}, "max_tokens"),
    ({**GOOD, "max_tokens": "7"}, "max_tokens"), ({**GOOD, "max_tokens": True}, "max_tokens"),
    ({**GOOD, "max_tokens": 10**9}, "max_tokens"), ({**GOOD, "temperature": -0.1}, "temperature"),
    ({**GOOD, "temperature": "hot"}, "temperature"),
    (b'{"model":"tiny","prompt":"a","temperature":NaN}', "temperature"),
    (b'{"model":"tiny","prompt":"a","temperature":1e999}', "temperature"), ({**GOOD, "top_p": 0}, "top_p"),
    ({**GOOD, "top_p": 1.01}, "top_p"), ({**GOOD, "top_k": -1}, "top_k"), ({**GOOD, "min_p": 2}, "min_p"),
    ({**GOOD, "repetition_penalty": 0}, "repetition_penalty"), ({**GOOD, "seed": 2**70}, "seed"),
    ({**GOOD, "seed": "x"}, "seed"), ({**GOOD, "n": 0}, "n"), ({**GOOD, "n": 99}, "n"),
    ({**GOOD, "stop": 5}, "stop"), ({**GOOD, "stop": [""]}, "stop"), ({**GOOD, "stop": ["a"] * 17}, "stop"),
    ({**GOOD, "logprobs": 21}, "logprobs"), ({**GOOD, "logprobs": True}, "logprobs"),
    ({**GOOD, "stream": "yes"}, "stream"), ({**GOOD, "stream_options": 1}, "stream_options"),
    ({**GOOD, "stream_options": {"x": 1}}, "stream_options.x"), ({**GOOD, "echo": True}, "echo"),
    ({**GOOD, "best_of": 3}, "best_of"), ({**GOOD, "suffix": "x"}, "suffix"),
    ({**GOOD, "logit_bias": {"1": 5}}, "logit_bias"),
    ({**GOOD, "presence_penalty": 1}, "presence_penalty"),
    ({**GOOD, "temprature": 1}, "temprature"),
    ({**GOOD, "session": "../x"}, "session"), ({**GOOD, "session": ""}, "session"),
    ({**GOOD, "session": ".x"}, "session"),
    ({**GOOD, "session": "a" * 65}, "session"), ({**GOOD, "session": 5}, "session"),
    ({**GOOD, "session": "a", "n": 2}, "n"),
]  # fmt: skip
BAD_CHATS = [
    ({"model": NAME}, "messages"), ({**CHAT, "messages": []}, "messages"), ({**CHAT, "messages": "hi"}, "messages"),
    ({**CHAT, "messages": ["hi"]}, "messages[0]"), ({**CHAT, "messages": [{}]}, "messages[0].role"),
    ({**CHAT, "messages": [TURN, {"role": "user"}]}, "messages[1].content"),
    ({**CHAT, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({**CHAT, "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({**CHAT, "messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({**CHAT, "messages": [{**TURN, "extra": 1}]}, "messages[0].extra"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
    ({**CHAT, "logprobs": 3}, "logprobs"), ({**CHAT, "top_logprobs": 3}, "top_logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": 99}, "top_logprobs"), ({**CHAT, "prompt": "a"}, "prompt"),
    ({**CHAT, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({**CHAT, "max_completion_tokens": 10**9}, "max_completion_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "bodies"), [("completions", BAD_COMPLETIONS), ("chat/completions", BAD_CHATS)])
def test_malformed_bodies_get_one_message_that_names_the_field(server, path, bodies):
    with httpx.Client() as http:
        for body, field in bodies:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = http.post(f"{server[0]}/v1/{path}", content=content)
            found = answer.json()
            assert found.keys() == {"error"}
            error = found["error"]
            assert 400 <= answer.status_code < 500, (content[:60], error)
            assert field in error["message"].split(":")[0], (content[:60], error)
            assert (error["param"] or "body") in (field, "body"), (content[:60], error)
            assert "\n" not in error["message"]
            assert len(error["message"]) < 300
    assert server[1].running == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405),
        ("GET", "/v1/models/other", 404), ("GET", "/v1/sessions/none", 404), ("DELETE", "/v1/sessions/..%2F..", 404),
        ("DELETE", "/v1/sessions/none", 404),
    ],
)  # fmt: skip
def test_unknown_paths_have_the_form_of_an_error(server, method, path, status):
    answer = httpx.request(method, server[0] + path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_null_and_fields_without_effect_are_accepted(client):
    answer = complete(client, "a", user="me", stop=None, top_p=None, presence_penalty=0, logit_bias={}, best_of=1)
    assert answer.choices[0].text == expected("a", 12)


def test_the_session_may_be_a_header(client, server):
    body = {**GOOD, "max_tokens": 2}
    answer = httpx.post(f"{server[0]}/v1/completions", json=body, headers={"X-Session-Id": "headed"})
    assert answer.status_code == 200
    assert httpx.get(f"{server[0]}/v1/sessions/headed").json()["tokens"] == 4
    wrong = httpx.post(f"{server[0]}/v1/completions", json=body, headers={"X-Session-Id": "../x"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "session")


def test_requests_of_the_same_session_follow_each_other(client):
    def count(_):
        usage = complete(client, "ab", extra_body={"session": "queue"}, temperature=0).usage
        return usage.prompt_tokens + usage.completion_tokens

    with ThreadPoolExecutor(6) as pool:
        total = sum(pool.map(count, range(6)))
    answer = complete(client, "c", 1, extra_body={"session": "queue", "report": True})
    assert answer.model_extra["mcframe"]["report"]["history"] == 1 + total + 2
