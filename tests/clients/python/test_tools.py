"""Calls of tools by a program, through what the OpenAI SDK has for them."""

import json
from typing import Literal

import openai
import pydantic
import pytest


class look(pydantic.BaseModel):
    """Looks around."""

    where: Literal["sea", "sky"]
    far: bool


TOOLS = [openai.pydantic_function_tool(look)]
MESSAGES = [{"role": "user", "content": "What is there?"}]


@pytest.fixture(scope="module")
def tools(push):
    """A program of that name, which is there while these tests run."""
    return push("tools", "tools")["id"]


def asked(model, **more):
    return {
        "model": model,
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 600,
        "seed": 3,
        **more,
    }


def test_a_call_is_parsed(client, tools):
    answer = client.chat.completions.parse(**asked(tools)).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    [call] = answer.message.tool_calls
    assert call.type == "function" and call.id.startswith("call_")
    assert isinstance(call.function.parsed_arguments, look)


def test_a_stream_adds_up_to_the_same_call(client, tools):
    whole = client.chat.completions.create(**asked(tools)).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(**asked(tools)) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls
    assert call.function.name == whole.function.name == "look"
    assert call.function.arguments == whole.function.arguments
    assert call.id.startswith("call_") and call.id != whole.id


def test_a_chat_goes_on_behind_a_call(client, tools):
    message = client.chat.completions.create(**asked(tools)).choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,
        "content": json.dumps({"seen": "a whale"}),
    }
    # The SDK's own object, as its users send it back.
    messages = [*MESSAGES, message, result]
    answer = client.chat.completions.create(**asked(tools, messages=messages, tool_choice="none"))
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked(tools, messages=[*MESSAGES, message]))
    assert caught.value.param == "messages[1].tool_calls[0]"
