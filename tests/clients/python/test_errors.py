"""Requests that are refused: with OpenAI's error object, and without harm to the next one."""

import re
import socket
from urllib.parse import urlsplit

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(autouse=True)
def server_still_answers(chat):
    yield
    assert chat("Hello!", max_tokens=1).choices


def is_error(response, status, **expected):
    """Whether a response is an error object with all four of its keys."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    assert {key: error[key] for key in expected} == expected
    return True


@pytest.mark.parametrize(
    "param, value",
    [
        ("temperature", 3),
        ("temperature", -0.1),
        ("top_p", 1.5),
        ("n", 0),
        ("n", 10_000),
        ("max_tokens", -1),
        ("max_completion_tokens", -1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("top_logprobs", 3),
        ("stop", ["a"] * 17),
        ("logit_bias", {"99999999": 1}),
        ("stream_options", {"include_usage": True}),
    ],
    ids=str,
)
def test_bad_values_name_their_parameter(chat, param, value):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(**{param: value})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    assert param in caught.value.message
    assert caught.value.request_id


@pytest.mark.parametrize(
    "param, value",
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("functions", [{"name": "f", "parameters": {}}]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("store", True),
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused(chat, param, value):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(**{param: value})
    assert caught.value.param == param
    assert caught.value.code == "unsupported_parameter"


def test_unknown_parameter(chat):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(extra_body={"temprature": 0})
    assert caught.value.param == "temprature"
    assert caught.value.code == "unknown_parameter"


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token"])
def test_variables_of_the_template_that_are_its_own(chat, name):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(extra_body={"chat_template_kwargs": {name: "x"}})
    assert caught.value.param == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(client, stream):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such", messages=HELLO, stream=stream)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="no-such", prompt="x", stream=stream)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such")


@pytest.mark.parametrize("stream", [False, True])
def test_context_length(chat, complete, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        chat("dog " * 100_000, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as caught:
        complete("dog", max_tokens=1_000_000, stream=stream)
    assert caught.value.code == "context_length_exceeded"


def test_answer_up_to_the_context(complete):
    """A full context ends an answer, and one token more is refused."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete("dog", max_tokens=1_000_000)
    limit = int(re.search(r"context length is (\d+)", caught.value.message)[1])
    prompt = complete("dog", max_tokens=1).usage.prompt_tokens
    room = limit - prompt
    full = complete("dog", max_tokens=room, temperature=0, extra_body={"ignore_eos": True})
    assert full.usage.total_tokens == limit
    with pytest.raises(openai.BadRequestError):
        complete("dog", max_tokens=room + 1)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": }',
        b"{}",
        b'{"model": 3}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_malformed_bodies(post, path, body):
    assert is_error(post(path, body), 400, type="invalid_request_error")


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": ["a"]},
        {"messages": None},
        {"messages": []},
        {"messages": "Hello!"},
        {"messages": [1]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"temperature": "hot"},
        {"max_tokens": "many"},
        {"max_tokens": 1.5},
        {"max_tokens": 1e30},
        {"n": True},
        {"stream": "yes"},
        {"stop": 3},
        {"stop": [""]},
        {"seed": "s"},
        {"logit_bias": [1]},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": "x"}},
        {"logit_bias": {"1": 101}},
        {"logprobs": 1},
        {"logprobs": True, "top_logprobs": 21},
        {"top_k": "x"},
        {"min_p": 2},
        {"min_tokens": -1},
        {"ignore_eos": 1},
    ],
    ids=str,
)
def test_wrong_types(post, model, change):
    body = {"model": model, "messages": HELLO, "max_tokens": 1} | change
    response = post("/chat/completions", {k: v for k, v in body.items() if v is not None})
    assert is_error(response, 400, type="invalid_request_error")
    assert response.json()["error"]["param"].split("[")[0].split(".")[0] in change


@pytest.mark.parametrize(
    "prompt", [None, 3, {}, [], [[]], [1, "a"], ["a", 1], [-1], [0.5], [2**31], [[1], [99999999]]], ids=str
)
def test_wrong_prompts(post, model, prompt):
    body = {"model": model, "max_tokens": 1}
    response = post("/completions", body if prompt is None else body | {"prompt": prompt})
    assert is_error(response, 400, type="invalid_request_error")
    assert response.json()["error"]["param"].startswith("prompt")


def test_a_full_queue(client, model):
    """More than can wait is refused before any work is done, and what gives up makes room."""
    streams = []
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(64):
            streams.append(
                client.completions.create(
                    model=model,
                    prompt="One day",
                    n=128,
                    max_tokens=1500,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
            )
    assert streams
    assert caught.value.code
    assert int(caught.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()
    # As the SDK does by default: try again when told to.
    client.with_options(max_retries=10).completions.create(model=model, prompt="x", max_tokens=1)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", None], ids=str)
def test_a_body_not_declared_as_json(post, kind):
    headers = {} if kind is None else {"content-type": kind}
    assert is_error(post("/completions", b"{}", headers=headers), 415)


def test_huge_body(post):
    assert is_error(post("/chat/completions", b" " * (17 << 20)), 413)


def test_huge_body_that_is_only_announced(base_url):
    """The refusal comes before the body, which may never come."""
    address = urlsplit(base_url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as stream:
        stream.sendall(
            f"POST {address.path}/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000000000000\r\n\r\n".encode()
        )
        assert stream.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/chat/completions"),
        ("PUT", "/completions"),
        ("DELETE", "/models"),
        ("POST", "/models"),
        ("PATCH", "/models/x"),
    ],
)
def test_wrong_methods(post, method, path):
    response = post(path, method=method)
    assert is_error(response, 405)
    assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/nope", "/", "", "/chat", "/completions/", "/../etc/passwd", "/%00"])
def test_unknown_paths(post, path):
    assert is_error(post(path, {}), 404)


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 70_000],
    ids=lambda noise: repr(noise[:8]),
)
def test_what_is_not_http(base_url, noise):
    address = urlsplit(base_url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as stream:
        try:
            stream.sendall(noise)
            stream.shutdown(socket.SHUT_WR)
            answer = stream.recv(4096)
        except OSError:  # closed before all of it was sent
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_request_id_of_a_client_is_kept_only_if_sane(post):
    for given, kept in [("abc-123", True), ("x" * 1000, False), ("with space", False)]:
        response = post("/nope", {}, headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) == kept
        assert response.headers["x-request-id"]
