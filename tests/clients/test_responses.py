"""The official `openai` client's Responses against a running router. PENSTOCK_URL names it; tests/e2e starts it."""

import json
import os

import openai
import pydantic
import pytest

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]
CAPITAL = "What is the capital of France?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture
def client():
    return openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)


def test_a_response(client):
    response = client.responses.create(
        model=MODEL, input=CAPITAL, temperature=0, max_output_tokens=40, metadata={"a": "b"}, user="u"
    )
    assert response.object == "response" and response.id.startswith("resp_") and response.status == "completed"
    assert "Paris" in response.output_text
    [item] = response.output
    assert item.type == "message" and item.role == "assistant" and item.content[0].annotations == []
    assert (response.metadata, response.user, response.temperature) == ({"a": "b"}, "u", 0)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens_details.cached_tokens >= 0
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.error is None and response.incomplete_details is None


def test_a_streams_events_add_up_to_the_folded_answer(client):
    ask = dict(model=MODEL, input=CAPITAL, temperature=0, max_output_tokens=40)
    folded = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == folded.output_text
    assert events[-1].response.output_text == folded.output_text
    assert events[-1].response.usage.output_tokens == folded.usage.output_tokens
    with client.responses.stream(**ask) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == folded.output_text


def test_a_limit_makes_it_incomplete(client):
    response = client.responses.create(model=MODEL, input="Tell me a story.", temperature=0, max_output_tokens=5)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 5
    events = list(
        client.responses.create(model=MODEL, input="Tell me a story.", temperature=0, max_output_tokens=5, stream=True)
    )
    assert events[-1].type == "response.incomplete" and events[-1].response.status == "incomplete"


def test_a_conversation_goes_on_by_its_items(client):
    first = client.responses.create(model=MODEL, input=CAPITAL, instructions="Be brief.", temperature=0)
    turns = [{"role": "user", "content": CAPITAL}, *first.output, {"role": "user", "content": "And of Italy?"}]
    second = client.responses.create(model=MODEL, input=turns, temperature=0, max_output_tokens=20)
    assert second.output_text
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_tools_round_trip(client):
    question = {"role": "user", "content": "What is the weather in Rome?"}
    ask = dict(model=MODEL, tools=[WEATHER], temperature=0, max_output_tokens=200)
    called = client.responses.create(
        input=[question], tool_choice={"type": "function", "name": "get_weather"}, parallel_tool_calls=False, **ask
    )
    [call] = [item for item in called.output if item.type == "function_call"]
    assert called.status == "completed" and call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    turns = [
        question,
        *called.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees, sun"},
    ]
    answer = client.responses.create(input=turns, tool_choice="none", **ask)
    assert answer.output_text


def test_a_call_streams_its_arguments(client):
    events = list(
        client.responses.create(
            model=MODEL,
            input="What is the weather in Rome?",
            tools=[WEATHER],
            tool_choice="required",
            temperature=0,
            max_output_tokens=200,
            stream=True,
        )
    )
    deltas = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done and deltas == "".join(event.arguments for event in done)
    assert json.loads(done[0].arguments)["city"] in ("Paris", "Rome")


class City(pydantic.BaseModel):
    name: str
    large: bool


def test_an_answer_is_parsed_into_pydantic(client):
    response = client.responses.parse(
        model=MODEL, input="Describe Paris.", text_format=City, temperature=0, max_output_tokens=200
    )
    assert isinstance(response.output_parsed, City)


def test_log_probabilities_are_included_where_asked_for(client):
    response = client.responses.create(
        model=MODEL,
        input=CAPITAL,
        temperature=0,
        max_output_tokens=5,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    logprobs = response.output[0].content[0].logprobs
    assert len(logprobs) == response.usage.output_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs)


@pytest.mark.parametrize(
    "error, change, param, code",
    [
        (openai.NotFoundError, {"model": "gpt-none"}, "model", "caller_model_not_found"),
        (openai.BadRequestError, {"store": True}, "store", "caller_invalid_request"),
        (openai.BadRequestError, {"previous_response_id": "resp_1"}, "previous_response_id", "caller_invalid_request"),
        (openai.BadRequestError, {"conversation": "conv_1"}, "conversation", "caller_invalid_request"),
        (openai.BadRequestError, {"background": True}, "background", "caller_invalid_request"),
        (openai.BadRequestError, {"reasoning": {"effort": "high"}}, "reasoning", "caller_invalid_request"),
        (openai.BadRequestError, {"tools": [{"type": "web_search"}]}, "tools[0].type", "caller_invalid_request"),
        (openai.BadRequestError, {"max_output_tokens": 0}, "max_output_tokens", "caller_invalid_request"),
        (openai.BadRequestError, {"input": "x " * 9000}, None, "caller_context_too_long"),
    ],
)
def test_errors_are_the_clients_own_classes(client, error, change, param, code):
    with pytest.raises(error) as caught:
        client.responses.create(**{"model": MODEL, "input": CAPITAL} | change)
    assert (caught.value.code, caught.value.param) == (code, param)
