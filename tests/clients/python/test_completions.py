"""Completions: the shapes of a prompt, echo and log-probabilities."""

import math

import pytest
from conftest import counts


def test_shape(complete, model):
    answer = complete(max_tokens=6, extra_body={"ignore_eos": True})
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == model
    choice = answer.choices[0]
    assert choice.text
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_default_length_is_16(complete):
    assert complete(extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_list_of_texts(complete):
    prompts = ["One day", "The sun is", "A little dog"]
    together = complete(prompts, temperature=0, max_tokens=8)
    alone = [complete(prompt, temperature=0, max_tokens=8) for prompt in prompts]
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [c.text for c in together.choices] == [a.choices[0].text for a in alone]
    assert together.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone)


def test_token_ids(complete, words):
    one = complete(words[:5], temperature=0, max_tokens=4, extra_body={"ignore_eos": True})
    assert one.usage.prompt_tokens == 5
    two = complete(
        [words[:5], words[5:8]], temperature=0, max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert two.usage.prompt_tokens == 8
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text


def test_token_ids_are_the_text(complete, vocabulary):
    """Sending the tokens of a text is sending the text."""
    text = " the dog and the cat"
    tokens = complete(text, echo=True, max_tokens=0, logprobs=0).choices[0].logprobs.tokens
    ids = [vocabulary[token] for token in tokens]
    by_ids = complete(ids, temperature=0, max_tokens=12)
    by_text = complete(text, temperature=0, max_tokens=12)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert counts(by_ids.usage) == counts(by_text.usage)


def test_several_choices_of_several_prompts(complete):
    answer = complete(["One day", "The sun"], n=2, seed=1, temperature=1.5, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) > 1


def test_echo(complete):
    prompt = "One day a little dog"
    alone = complete(prompt, temperature=0, max_tokens=6)
    echo = complete(prompt, temperature=0, max_tokens=6, echo=True)
    assert echo.choices[0].text == prompt + alone.choices[0].text
    assert counts(echo.usage) == counts(alone.usage)


def test_echo_alone(complete):
    answer = complete("One day a little dog", echo=True, max_tokens=0)
    assert answer.choices[0].text == "One day a little dog"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0


def test_logprobs(complete):
    answer = complete(temperature=0, max_tokens=8, logprobs=3, extra_body={"ignore_eos": True})
    choice = answer.choices[0]
    scored = choice.logprobs
    assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.top_logprobs) == 8
    assert "".join(scored.tokens) == choice.text
    offset = 0
    for token, start in zip(scored.tokens, scored.text_offset, strict=True):
        assert start == offset
        offset += len(token)
    for token, logprob, top in zip(scored.tokens, scored.token_logprobs, scored.top_logprobs):
        assert 3 <= len(top) <= 4
        assert top[token] == logprob == pytest.approx(max(top.values()), abs=1e-4)
        assert sum(math.exp(p) for p in top.values()) <= 1.001


def test_logprobs_of_the_prompt(complete):
    prompt = "One day a little dog went to the park."
    answer = complete(prompt, echo=True, max_tokens=0, logprobs=2)
    scored = answer.choices[0].logprobs
    assert len(scored.tokens) == answer.usage.prompt_tokens
    first, *rest = scored.token_logprobs
    assert first is None and all(p <= 0 for p in rest)
    assert scored.top_logprobs[0] is None
    assert all(2 <= len(top) <= 3 for top in scored.top_logprobs[1:])
    assert scored.text_offset == sorted(scored.text_offset)


def test_prompt_and_answer_are_scored_alike(complete, vocabulary, words):
    """What a token scores does not depend on whether it was given or drawn."""
    # The bias makes the answer one of known tokens; scores are those without it.
    drawn = complete(
        words[:4], seed=1, max_tokens=8, logprobs=0, logit_bias={str(w): 50 for w in words[4:68]}
    )
    drawn = drawn.choices[0].logprobs
    ids = [vocabulary[token] for token in drawn.tokens]
    given = complete(words[:4] + ids, echo=True, max_tokens=0, logprobs=0).choices[0].logprobs
    assert given.tokens[4:] == drawn.tokens
    assert given.token_logprobs[4:] == pytest.approx(drawn.token_logprobs, abs=0.05)
