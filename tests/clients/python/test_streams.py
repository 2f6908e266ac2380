"""Streamed answers: their order, and that they say what whole answers say."""

import asyncio
import json
import subprocess
from collections import defaultdict

import pytest
from conftest import counts
import requests

STORY = [{"role": "user", "content": "Tell me a story about a cat."}]


def chunks_of(client, model, **params):
    params = {"messages": STORY, "max_tokens": 24, **params}
    return list(client.chat.completions.create(model=model, stream=True, **params))


def texts(chunks):
    """The text of each choice."""
    by_index = defaultdict(str)
    for chunk in chunks:
        for choice in chunk.choices:
            by_index[choice.index] += choice.delta.content or ""
    return dict(by_index)


def test_order(client, model):
    chunks = chunks_of(client, model, stream_options={"include_usage": True})
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    *body, last = chunks
    assert last.choices == []
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in body)
    choices = [chunk.choices[0] for chunk in body]
    assert choices[0].delta.role == "assistant"
    assert all(choice.delta.role is None for choice in choices[1:])
    assert all(choice.finish_reason is None for choice in choices[:-1])
    assert choices[-1].finish_reason in ("stop", "length")
    assert not choices[-1].delta.content
    assert texts(chunks)[0]


def test_usage_so_far(client, model):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *body, last = chunks_of(client, model, stream_options=options, n=2, seed=5, temperature=1.5)
    so_far = {0: 0, 1: 0}
    for chunk in body:
        index, tokens = chunk.choices[0].index, chunk.usage.completion_tokens
        assert chunk.usage.prompt_tokens == last.usage.prompt_tokens
        assert tokens >= so_far[index]
        so_far[index] = tokens
    assert last.choices == [] and sum(so_far.values()) == last.usage.completion_tokens


def test_no_usage_unless_asked(client, model):
    assert all(chunk.usage is None and chunk.choices for chunk in chunks_of(client, model))


def test_more_than_one_piece(client, model):
    pieces = [c for c in chunks_of(client, model) if c.choices[0].delta.content]
    assert len(pieces) > 5


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1, "seed": 3},
        {"temperature": 1, "seed": 4, "top_p": 0.8, "frequency_penalty": 0.5},
        {"temperature": 0, "stop": ["e "]},
        {"temperature": 1.5, "seed": 5, "n": 3},
    ],
)
def test_streamed_is_whole(client, model, chat, params):
    chunks = chunks_of(client, model, stream_options={"include_usage": True}, **params)
    whole = chat(messages=STORY, max_tokens=24, **params)
    assert texts(chunks) == {c.index: c.message.content for c in whole.choices}
    assert counts(chunks[-1].usage) == counts(whole.usage)
    ends = {c.index: c.finish_reason for k in chunks for c in k.choices if c.finish_reason}
    assert ends == {c.index: c.finish_reason for c in whole.choices}


def test_several_choices(client, model):
    def run():
        return chunks_of(client, model, n=3, seed=5, temperature=1.5)

    chunks = run()
    first, ends = {}, []
    for chunk in chunks:
        for choice in chunk.choices:
            first.setdefault(choice.index, choice)
            assert choice.index not in ends, "nothing follows a finish_reason"
            if choice.finish_reason:
                ends.append(choice.index)
    assert sorted(ends) == sorted(first) == [0, 1, 2]
    assert all(choice.delta.role == "assistant" for choice in first.values())
    answers = texts(chunks)
    assert len(set(answers.values())) > 1
    assert texts(run()) == answers


def test_logprobs(client, model):
    chunks = chunks_of(
        client,
        model,
        logprobs=True,
        top_logprobs=2,
        temperature=0,
        max_tokens=10,
        extra_body={"ignore_eos": True},
    )
    entries = [
        entry
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content or []
    ]
    assert len(entries) == 10
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_completions(client, model):
    def ask(**params):
        return client.completions.create(
            model=model, prompt=["One day", "The sun"], max_tokens=12, seed=1, **params
        )

    by_index, ends = defaultdict(str), {}
    *body, last = ask(stream=True, stream_options={"include_usage": True})
    for chunk in body:
        assert chunk.object == "text_completion" and chunk.usage is None
        for choice in chunk.choices:
            by_index[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    whole = ask()
    assert by_index == {c.index: c.text for c in whole.choices}
    assert ends == {c.index: c.finish_reason for c in whole.choices}
    assert last.choices == [] and counts(last.usage) == counts(whole.usage)


async def test_64_streams_are_what_each_is_alone(async_client, model):
    async def run(seed):
        stream = await async_client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Tell me a story about {seed} cats."}],
            seed=seed,
            temperature=0.9,
            max_tokens=16 + seed % 32,
            stream=True,
        )
        said = [c async for c in stream]
        ends = [c.choices[0].finish_reason for c in said if c.choices[0].finish_reason]
        return texts(said).get(0, ""), ends

    together = await asyncio.gather(*(run(seed) for seed in range(64)))
    alone = [await run(seed) for seed in range(64)]
    assert together == alone
    assert all(len(ends) == 1 for _, ends in alone)


def test_client_that_leaves(base_url, client, model, chat):
    """Nothing of it is left: its sequences leave the batch, and others are served."""
    for _ in range(8):
        stream = client.chat.completions.create(
            model=model,
            messages=STORY,
            stream=True,
            max_tokens=1500,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        stream.close()
    # One that goes without reading at all, and one that goes before its whole answer is there.
    body = {"model": model, "messages": STORY, "max_tokens": 1500, "ignore_eos": True}
    url = base_url + "/chat/completions"
    requests.post(url, json=body | {"stream": True}, stream=True, timeout=60).close()
    with pytest.raises(requests.Timeout):
        requests.post(url, json=body | {"n": 8}, timeout=(5, 0.2))
    assert chat("Hello!", temperature=0).choices[0].message.content


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_curl(base_url, model, version):
    if version == "2" and "HTTP2" not in subprocess.check_output(["curl", "--version"], text=True):
        pytest.skip("this curl does not know HTTP/2")
    body = {"model": model, "messages": STORY, "stream": True, "max_tokens": 8, "temperature": 0}
    command = ["curl", "--no-buffer", "--silent", "--show-error", "--fail", "--max-time", "60"]
    command += ["--http1.1" if version == "1.1" else "--http2-prior-knowledge"]
    command += ["--include", "--header", "content-type: application/json"]
    command += ["--data", json.dumps(body), base_url + "/chat/completions"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    head, _, events = output.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith(f"HTTP/{version} 200")
    assert "content-type: text/event-stream" in head.lower()
    lines = [line for line in events.split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert events.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")

