"""How tokens are drawn."""

import pytest

GREEDY = {"temperature": 0, "max_tokens": 24}


def text(answer):
    return answer.choices[0].text


def test_temperature_0_repeats(complete):
    assert len({text(complete(**GREEDY)) for _ in range(3)}) == 1


def test_seed_repeats(complete):
    def ask(seed):
        return text(complete(seed=seed, temperature=1.2, max_tokens=24))

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(8)}) > 1


def test_without_a_seed_answers_differ(complete):
    assert len({text(complete(temperature=1.5, max_tokens=32)) for _ in range(8)}) > 1


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_any_seed(complete, seed):
    assert text(complete(seed=seed, max_tokens=4)) == text(complete(seed=seed, max_tokens=4))


@pytest.mark.parametrize("body", [{"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_narrowed_to_the_likeliest(complete, body):
    """With one token left to draw from, any temperature draws as 0 does."""
    drawn = complete(temperature=2, max_tokens=24, seed=1, extra_body=body)
    assert text(drawn) == text(complete(**GREEDY))


def test_top_p_narrowed_to_the_likeliest(complete):
    drawn = complete(temperature=2, max_tokens=24, seed=1, top_p=1e-6)
    assert text(drawn) == text(complete(**GREEDY))


def test_top_k_bounds_the_draw(complete):
    answer = complete(
        temperature=2, seed=3, max_tokens=32, logprobs=5, extra_body={"top_k": 5}
    ).choices[0]
    for token, top in zip(answer.logprobs.tokens, answer.logprobs.top_logprobs):
        assert len(top) == 5 and token in top


def test_bias_forces_a_token(complete, words):
    for word in words[:3]:
        answer = complete(
            max_tokens=5, logit_bias={str(word): 100}, logprobs=0, temperature=0
        ).choices[0]
        assert len(set(answer.logprobs.tokens)) == 1 and len(answer.logprobs.tokens) == 5


def test_bias_forces_the_named_token(complete, vocabulary, words):
    names = {i: name for name, i in vocabulary.items()}
    answer = complete(max_tokens=3, logit_bias={str(words[0]): 100}, temperature=0)
    assert text(answer) == names[words[0]] * 3


def test_bias_bans_tokens(complete, vocabulary):
    def tokens(bias):
        return complete(**GREEDY, logprobs=0, logit_bias=bias).choices[0].logprobs.tokens

    banned = {}
    for _ in range(4):
        said = [token for token in tokens(banned) if token in vocabulary]
        assert not any(str(vocabulary[token]) in banned for token in said)
        banned[str(vocabulary[said[0]])] = -100
    assert len(banned) == 4


def test_penalties_keep_from_repeating(complete, words):
    """Of 16 favoured tokens, as many different ones are drawn as there are draws."""
    favoured = {str(word): 50 for word in words[:16]}

    def distinct(**params):
        answer = complete(
            temperature=0, max_tokens=12, logit_bias=favoured, logprobs=0, seed=1, **params
        )
        return len(set(answer.choices[0].logprobs.tokens))

    plain = distinct()
    assert distinct(presence_penalty=2, frequency_penalty=2) > plain
    assert distinct(extra_body={"repetition_penalty": 2.0}) > plain


def test_negative_penalty_repeats(complete):
    def most_frequent(penalty):
        answer = complete(
            max_tokens=40,
            temperature=0,
            frequency_penalty=penalty,
            logprobs=0,
            # Only two tokens can come, whatever the model thinks of them.
            logit_bias={"300": 100, "301": 100},
            extra_body={"ignore_eos": True},
        )
        tokens = answer.choices[0].logprobs.tokens
        return max(tokens.count(token) for token in tokens)

    assert most_frequent(2) < most_frequent(-2)


def test_ignore_eos(complete):
    answer = complete(max_tokens=200, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 200
    assert answer.choices[0].finish_reason == "length"


def test_min_tokens(chat):
    usual = chat("Hello!", temperature=0).usage.completion_tokens
    longer = chat("Hello!", temperature=0, extra_body={"min_tokens": usual + 10})
    assert longer.usage.completion_tokens >= usual + 10


@pytest.mark.parametrize("stop", [" the", "a", ".", ["and", "e"]], ids=str)
def test_stop(complete, stop):
    for seed in range(4):
        params = {"seed": seed, "max_tokens": 48, "temperature": 1}
        whole = text(complete(**params))
        answer = complete(**params, stop=stop).choices[0]
        stops = [stop] if isinstance(stop, str) else stop
        found = [whole.index(s) for s in stops if s in whole]
        assert answer.text == whole[: min(found, default=None)]
        if found:
            assert answer.finish_reason == "stop"


def test_stop_across_tokens(complete):
    whole = text(complete(**GREEDY))
    for start in range(1, len(whole) - 6, 5):
        stop = whole[start : start + 6]
        answer = complete(**GREEDY, stop=stop).choices[0]
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"


def test_stop_ends_one_choice_and_not_the_others(complete):
    params = {"n": 4, "seed": 2, "temperature": 1.3, "max_tokens": 32}
    whole = [choice.text for choice in complete(**params).choices]
    stop = whole[0][4:9]
    for choice, unstopped in zip(complete(**params, stop=stop).choices, whole):
        assert choice.text == unstopped.split(stop)[0]
