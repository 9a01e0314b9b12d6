"""The official `anthropic` client against a running router. PENSTOCK_URL names it; tests/e2e starts it."""

import json
import os

import anthropic
import pytest

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
# The client's own signature has no temperature any more; the face takes it.
GREEDY = {"extra_body": {"temperature": 0}}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client():
    return anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120)


def test_a_message(client):
    message = client.messages.create(model=MODEL, max_tokens=40, messages=CAPITAL, **GREEDY)
    assert message.type == "message" and message.role == "assistant" and message.model == MODEL
    assert message.id.startswith("msg_") and message._request_id
    [block] = message.content
    assert block.type == "text" and "Paris" in block.text
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 5
    assert message.usage.output_tokens > 1


def test_the_stream_helper_says_what_the_folded_answer_says(client):
    ask = dict(model=MODEL, max_tokens=40, messages=CAPITAL, **GREEDY)
    folded = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert message.content[0].text == folded.content[0].text
    assert message.stop_reason == folded.stop_reason
    assert message.usage.output_tokens == folded.usage.output_tokens
    total = lambda usage: usage.input_tokens + usage.cache_read_input_tokens
    assert total(message.usage) == total(folded.usage)
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == folded.content[0].text


def test_system_turns_and_stop_reasons(client):
    answer = client.messages.create(
        model=MODEL,
        max_tokens=5,
        system=[{"type": "text", "text": "You are a poet.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": [{"type": "text", "text": "Good day."}]},
            {"role": "user", "content": [{"type": "text", "text": "Tell me a long story about a river."}]},
        ],
        metadata={"user_id": "u"},
        **GREEDY,
    )
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 5)
    whole = client.messages.create(model=MODEL, max_tokens=40, messages=CAPITAL, **GREEDY).content[0].text
    cut = client.messages.create(model=MODEL, max_tokens=40, messages=CAPITAL, stop_sequences=["Paris"], **GREEDY)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", "Paris")
    assert "".join(block.text for block in cut.content) == whole[: whole.index("Paris")]


def test_a_count_is_the_prompt_of_the_message(client):
    count = client.messages.count_tokens(model=MODEL, messages=CAPITAL, system="Be kind.").input_tokens
    usage = client.messages.create(model=MODEL, max_tokens=1, messages=CAPITAL, system="Be kind.").usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens
    more = client.messages.count_tokens(model=MODEL, messages=CAPITAL, system="Be kind. " * 10).input_tokens
    assert more > count


def test_a_count_has_the_tools_in_it(client):
    with_tools = client.messages.count_tokens(model=MODEL, messages=CAPITAL, tools=[WEATHER]).input_tokens
    assert with_tools > client.messages.count_tokens(model=MODEL, messages=CAPITAL).input_tokens + 20
    usage = client.messages.create(
        model=MODEL, max_tokens=1, messages=CAPITAL, tools=[WEATHER], tool_choice={"type": "auto"}
    ).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == with_tools


def test_a_tools_round_trip(client):
    ask = dict(model=MODEL, max_tokens=200, tools=[WEATHER], **GREEDY)
    question = {"role": "user", "content": "What is the weather in Rome?"}
    called = client.messages.create(
        messages=[question],
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        **ask,
    )
    assert called.stop_reason == "tool_use"
    [call] = [block for block in called.content if block.type == "tool_use"]
    assert call.name == "get_weather" and call.input["city"] in ("Paris", "Rome")
    turns = [
        question,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in called.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees, sun"}]},
    ]
    answer = client.messages.create(messages=turns, tool_choice={"type": "none"}, **ask)
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.content[0].text


def test_a_call_streams_its_json(client):
    with client.messages.stream(
        model=MODEL,
        max_tokens=200,
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        **GREEDY,
    ) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    calls = [block for block in message.content if block.type == "tool_use"]
    assert calls and message.stop_reason == "tool_use"
    assert json.loads("".join(pieces)) == calls[0].input


@pytest.mark.parametrize(
    "error, change, param, code",
    [
        (anthropic.NotFoundError, {"model": "claude-none"}, "model", "caller_model_not_found"),
        (anthropic.BadRequestError, {"messages": []}, "messages", "caller_invalid_request"),
        (anthropic.BadRequestError, {"max_tokens": 0}, "max_tokens", "caller_invalid_request"),
        (anthropic.BadRequestError, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking", "caller_invalid_request"),
        (
            anthropic.BadRequestError,
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]},
            "messages[0].content[0].tool_use_id",
            "caller_invalid_request",
        ),
        (
            anthropic.BadRequestError,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]},
            "messages[0].content[0].type",
            "caller_invalid_request",
        ),
        (anthropic.BadRequestError, {"tools": [WEATHER, WEATHER]}, "tools[1].name", "caller_invalid_request"),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "x " * 9000}]}, None, "caller_context_too_long"),
    ],
)
def test_errors_are_the_clients_own_classes(client, error, change, param, code):
    with pytest.raises(error) as caught:
        client.messages.create(**{"model": MODEL, "max_tokens": 5, "messages": CAPITAL} | change)
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["code"] == code and caught.value.request_id == body["request_id"]
    if param:
        assert body["error"]["param"] == param
    if code == "caller_model_not_found":
        assert MODEL in body["error"]["message"]
