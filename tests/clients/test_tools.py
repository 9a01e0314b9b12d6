"""Tools by the official `openai` client against a running router. PENSTOCK_URL names it; tests/e2e starts it."""

import json
import os

import openai
import pytest

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]


def function(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": parameters}}


CITY = {"enum": ["Oslo", "Paris", "Rome"]}
WEATHER = function("weather", city=CITY)
TIME = function("time", city=CITY)
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
ROUND = ASK + [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny in Oslo."},
]
# What a model this small is shown to do twice, it does again.
AGAIN = ROUND + [
    {"role": "user", "content": "What is the weather in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
    },
    {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
    {"role": "assistant", "content": "It is raining in Rome."},
    {"role": "user", "content": "What is the weather in Paris?"},
]


@pytest.fixture
def client():
    return openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=60)


def create(client, **change):
    ask = dict(model=MODEL, messages=ASK, tools=[WEATHER, TIME], temperature=0, max_tokens=120)
    return client.chat.completions.create(**ask | change)


def calls_of(stream):
    """The calls of a stream, put together as clients do, its finish reason, and how many pieces had arguments."""
    calls, reason, pieces = {}, None, 0
    for chunk in stream:
        [choice] = chunk.choices
        reason = choice.finish_reason or reason
        for piece in choice.delta.tool_calls or []:
            if piece.id:
                assert piece.type == "function" and piece.index not in calls
                calls[piece.index] = {"id": piece.id, "name": piece.function.name, "arguments": ""}
            calls[piece.index]["arguments"] += piece.function.arguments
            pieces += bool(piece.function.arguments)
    return list(calls.values()), reason, pieces


def test_a_model_that_may_call_calls_and_streams_the_same(client):
    choice = create(client, messages=AGAIN).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.id.startswith("call_") and call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert not choice.message.content
    [streamed], reason, pieces = calls_of(create(client, messages=AGAIN, stream=True))
    assert (streamed["name"], streamed["arguments"]) == (call.function.name, call.function.arguments)
    assert reason == "tool_calls" and pieces > 1
    assert streamed["id"] != call.id


def test_a_result_comes_back_as_an_answer(client):
    turn = create(client, messages=AGAIN).choices[0].message
    [call] = turn.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "foggy"}
    answer = create(client, messages=AGAIN + [turn, result]).choices[0]
    assert answer.finish_reason == "stop"
    assert "foggy" in answer.message.content
    assert answer.message.tool_calls is None


def test_a_choice_of_none_makes_no_calls(client):
    choice = create(client, messages=AGAIN, tool_choice="none").choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content and choice.finish_reason in ("stop", "length")


def test_tools_cost_tokens(client):
    without = create(client, tools=openai.omit, max_tokens=1)
    assert create(client, max_tokens=1).usage.prompt_tokens > without.usage.prompt_tokens + 50


@pytest.mark.parametrize("temperature, seed", [(0, 0), (1.5, 1), (1.5, 2)])
def test_a_call_that_must_be_made_is_made(client, temperature, seed):
    choice = create(client, tool_choice="required", temperature=temperature, seed=seed, max_tokens=1500).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    for call in choice.message.tool_calls:
        assert call.function.name in ("weather", "time")
        assert json.loads(call.function.arguments)["city"] in CITY["enum"]


def test_one_call_where_there_may_be_one(client):
    ask = dict(tool_choice="required", parallel_tool_calls=False, temperature=1.5, max_tokens=500)
    for seed in range(4):
        [call] = create(client, seed=seed, **ask).choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["city"] in CITY["enum"]


def test_a_tool_asked_for_by_name_is_called(client):
    named = {"type": "function", "function": {"name": "time"}}
    choice = create(client, tool_choice=named).choices[0]
    # OpenAI's word: the call was the answer that was asked for.
    assert choice.finish_reason == "stop"
    [call] = choice.message.tool_calls
    assert call.function.name == "time"
    assert json.loads(call.function.arguments)["city"] in CITY["enum"]
    [streamed], reason, _ = calls_of(create(client, tool_choice=named, stream=True))
    assert (streamed["name"], streamed["arguments"], reason) == ("time", call.function.arguments, "stop")


def test_strict_tools_are_called_well_or_not_at_all(client):
    strict = json.loads(json.dumps(WEATHER))
    strict["function"]["strict"] = True
    for seed in range(4):
        message = create(client, messages=AGAIN, tools=[strict], temperature=1.2, seed=seed).choices[0].message
        for call in message.tool_calls or []:
            assert json.loads(call.function.arguments)["city"] in CITY["enum"]


@pytest.mark.parametrize(
    "change, param",
    [
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [function("no name")]}, "tools[0].function.name"),
        ({"tools": [function(f"f{number}") for number in range(129)]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}}, "tool_choice"),
        ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice"),
        ({"messages": ASK + [{"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]}, "messages[1].tool_call_id"),
        ({"functions": [{"name": "f", "parameters": {}}]}, "functions"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools[0].function.parameters"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(client, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **change)
    assert caught.value.param == param
    assert caught.value.code == "caller_invalid_request"
