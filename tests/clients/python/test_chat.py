"""Chat completions."""

import time

import pytest


def test_shape(chat, model):
    answer = chat(max_tokens=8, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    assert abs(answer.created - time.time()) < 600
    assert [choice.index for choice in answer.choices] == [0]
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")


def test_ids_differ(chat):
    assert len({chat(max_tokens=1).id for _ in range(3)}) == 3


def test_request_id(chat, client):
    answer = chat(max_tokens=1)
    assert answer._request_id
    own = chat(max_tokens=1, extra_headers={"x-request-id": "of-the-client-1"})
    assert own._request_id == "of-the-client-1"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length(chat, name):
    answer = chat(**{name: 5}, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_ends_by_itself(chat):
    answer = chat("Hello!", temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert "<|" not in answer.choices[0].message.content


def test_prompt_tokens_grow_with_the_prompt(chat):
    short = chat("dog", max_tokens=1).usage.prompt_tokens
    long = chat("dog dog dog dog dog dog dog dog", max_tokens=1).usage.prompt_tokens
    assert 0 < short < long


def test_several_turns(chat):
    turns = [{"role": "system", "content": "You are a friendly helper."}]
    prompts = []
    for question in ["Hello!", "What is your name?", "Thank you."]:
        turns.append({"role": "user", "content": question})
        answer = chat(messages=turns, temperature=0, max_tokens=48)
        # As clients do: the message goes back as it came.
        turns.append(answer.choices[0].message.model_dump(exclude_none=True))
        prompts.append(answer.usage.prompt_tokens)
    assert prompts == sorted(set(prompts))


def test_content_in_parts(chat):
    whole = chat("Tell me about the sun.", temperature=0, max_tokens=8)
    parts = chat(
        [{"type": "text", "text": "Tell me about "}, {"type": "text", "text": "the sun."}],
        temperature=0,
        max_tokens=8,
    )
    assert parts.usage.prompt_tokens >= 8
    assert parts.choices[0].message.role == whole.choices[0].message.role


def test_a_template_that_does_not_ask_may_be_told(chat):
    usual = chat(temperature=0, max_tokens=8)
    for more in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        told = chat(temperature=0, max_tokens=8, extra_body=more)
        assert told.choices[0].message.content == usual.choices[0].message.content
        assert told.usage.prompt_tokens == usual.usage.prompt_tokens


def test_any_text_is_taken(chat):
    for content in ["", " ", "日本語 и 🙂 e\u0301", "<|im_end|>", "\x00\x01", "a" * 500]:
        answer = chat(content, max_tokens=4)
        assert answer.usage.completion_tokens <= 4


def test_several_choices(chat):
    def ask(**params):
        params = {"n": 3, "seed": 11, "temperature": 1.5, "max_tokens": 24, **params}
        return [choice.message.content for choice in chat(**params).choices]

    answers = ask()
    assert len(answers) == 3 and len(set(answers)) > 1
    assert ask() == answers
    assert ask(n=1) == answers[:1]


def test_usage_counts_all_choices(chat):
    one = chat(n=1, max_tokens=6, extra_body={"ignore_eos": True}).usage
    three = chat(n=3, max_tokens=6, extra_body={"ignore_eos": True}).usage
    assert three.prompt_tokens == one.prompt_tokens
    assert (one.completion_tokens, three.completion_tokens) == (6, 18)


def test_what_was_read_before_is_cached(chat):
    text = "Say something about the number %d. " % time.time_ns() * 4
    first, second = (chat(text, max_tokens=8, temperature=0) for _ in range(2))
    assert second.choices[0].message.content == first.choices[0].message.content
    assert first.usage.prompt_tokens_details.cached_tokens < 20
    read = second.usage.prompt_tokens - second.usage.prompt_tokens_details.cached_tokens
    assert 1 <= read <= 16


def test_logprobs(chat):
    answer = chat(
        logprobs=True, top_logprobs=4, temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
    )
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens == 12
    for entry in entries:
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
        top = [alternative.logprob for alternative in entry.top_logprobs]
        assert len(top) == 4
        assert top == sorted(top, reverse=True)
        assert max(top) <= 0
        # Without randomness the likeliest token is drawn.
        assert entry.logprob == pytest.approx(top[0], abs=1e-4)


def test_logprobs_spell_the_content(chat):
    answer = chat("Hello!", logprobs=True, max_tokens=24, temperature=0)
    choice = answer.choices[0]
    spelled = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content).decode()
    assert spelled.startswith(choice.message.content)
    assert all(entry.top_logprobs == [] for entry in choice.logprobs.content)


def test_stop_string(chat):
    whole = chat(temperature=0, max_tokens=48).choices[0].message.content
    # Across tokens: from inside one word to inside the next.
    stop = whole[len(whole) // 3 :][:7]
    answer = chat(temperature=0, max_tokens=48, stop=[stop, "never said"]).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content == whole[: whole.index(stop)]
