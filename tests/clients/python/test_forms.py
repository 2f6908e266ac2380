"""Answers of a form: OpenAI's `response_format`, and `structured_outputs` as vLLM has it."""

import json
import re
from enum import Enum

import jsonschema
import openai
import pydantic
import pytest

TOKENS = 600


class Animal(str, Enum):
    cat = "cat"
    dog = "dog"


class Name(pydantic.BaseModel):
    first: str = pydantic.Field(max_length=8)
    nick: str | None = pydantic.Field(max_length=8)


class Pet(pydantic.BaseModel):
    animal: Animal
    legs: int = pydantic.Field(ge=0, le=99)
    tame: bool
    names: list[Name] = pydantic.Field(min_length=1, max_length=3)


SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["color", "sizes"],
    "additionalProperties": False,
}


def schema(value):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": value}}


@pytest.mark.parametrize("seed", range(3))
def test_a_pydantic_model(client, model, seed):
    messages = [{"role": "user", "content": "Which pet do you have?"}]
    answer = client.chat.completions.parse(
        model=model, messages=messages, response_format=Pet, n=2, seed=seed, max_tokens=TOKENS
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Pet)


def test_a_pydantic_model_streamed(client, model):
    messages = [{"role": "user", "content": "Which pet do you have?"}]
    with client.chat.completions.stream(
        model=model, messages=messages, response_format=Pet, seed=4, max_tokens=TOKENS
    ) as stream:
        kinds = {event.type for event in stream}
        assert "content.delta" in kinds
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)


def test_too_few_tokens_are_no_answer(client, model):
    messages = [{"role": "user", "content": "Which pet do you have?"}]
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=messages, response_format=Pet, max_tokens=3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema(chat, stream):
    answer = chat("A thing.", response_format=schema(SCHEMA), seed=1, stream=stream, max_tokens=TOKENS)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)


def test_json_of_any_kind(chat):
    # A model that has never seen JSON needs help to find its end.
    answer = chat("A thing.", response_format={"type": "json_object"}, seed=1, max_tokens=TOKENS)
    choice = answer.choices[0]
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_text_is_no_form(chat):
    same = dict(seed=1, temperature=0, max_tokens=16)
    free = chat("A thing.", **same)
    text = chat("A thing.", response_format={"type": "text"}, **same)
    assert text.choices[0].message.content == free.choices[0].message.content


@pytest.mark.parametrize(
    "outputs, expected",
    [
        ({"regex": "[0-9]{3}-[a-f]{1,4}x"}, r"[0-9]{3}-[a-f]{1,4}x"),
        ({"choice": ["left", "right"]}, r"left|right"),
        ({"grammar": 'start: "(" /[0-9]{2}/ ")"'}, r"\([0-9]{2}\)"),
        ({"json": {"type": "boolean"}}, r"\s*(true|false)\s*"),
        ({"json": '{"const": 5}'}, r"\s*5\s*"),
    ],
    ids=str,
)
def test_structured_outputs(chat, complete, outputs, expected):
    extra = dict(extra_body={"structured_outputs": outputs}, max_tokens=TOKENS, n=2, seed=3)
    texts = [choice.message.content for choice in chat("Say something.", **extra).choices]
    texts += [choice.text for choice in complete("Something:", **extra).choices]
    for text in texts:
        assert re.fullmatch(expected, text), text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "param, value, code",
    [
        ("response_format", schema({"type": "thing"}), "invalid_grammar"),
        ("structured_outputs", {"regex": "("}, "invalid_grammar"),
        ("structured_outputs", {"regex": "a", "choice": ["b"]}, "invalid_value"),
        ("response_format.type", {"type": "xml"}, "unsupported_parameter"),
    ],
    ids=str,
)
def test_what_is_no_form(chat, stream, param, value, code):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(extra_body={param.split(".")[0]: value}, stream=stream)
    assert caught.value.param == param
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
