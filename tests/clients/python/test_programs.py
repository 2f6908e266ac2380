"""Programs of tenants: pushed over HTTP, named by the OpenAI SDK in `extra_body`."""

import openai
import pytest

CHOICES = ["yes", "no", "who knows"]


@pytest.fixture(scope="module")
def choice(push):
    """A program of that name, which is there while these tests run."""
    pushed = push("choice", "pick")
    assert pushed["kind"] == "processor"
    return pushed["id"]


def processor(name, **args):
    return {"processor": {"name": name, "args": args}}


def ask(client, body, **more):
    messages = [{"role": "user", "content": "Is the sky blue?"}]
    return client.chat.completions.create(
        model="realm-tiny", messages=messages, extra_body=body, **more
    )


def test_an_answer_is_a_choice(client, choice):
    answer = ask(client, processor(choice, choices=CHOICES), n=3, temperature=1.2)
    for picked in answer.choices:
        assert picked.message.content.strip() in CHOICES
        assert picked.finish_reason == "stop"


def test_a_stream_is_steered_too(client, choice):
    chunks = ask(client, processor(choice, choices=CHOICES), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() in CHOICES


def test_the_same_seed_makes_the_same_choice(client, choice):
    body = processor(choice, choices=CHOICES)
    texts = {ask(client, body, seed=4, temperature=2).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


def test_what_the_program_says_is_the_error(client, choice):
    with pytest.raises(openai.UnprocessableEntityError) as error:
        ask(client, processor(choice, choices="yes"))
    assert error.value.code == "processor_error"
    assert "processor.args" in error.value.message


def test_a_program_that_is_not_there(client):
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, processor("nobody"))
    assert error.value.code == "program_not_found"
