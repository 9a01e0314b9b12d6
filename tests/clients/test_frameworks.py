"""Frameworks as clients of a running router. PENSTOCK_URL names it; tests/e2e starts it."""

import os

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]
CAPITAL = "What is the capital of France?"


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_invokes_and_streams(responses):
    chat = ChatOpenAI(
        base_url=URL + "/v1",
        api_key="none",
        model=MODEL,
        temperature=0,
        max_tokens=40,
        max_retries=0,
        timeout=120,
        use_responses_api=responses,
    )
    turns = [SystemMessage("You are a helpful assistant."), HumanMessage(CAPITAL)]
    answer = chat.invoke(turns)
    assert "Paris" in answer.text
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream(turns)) == answer.text


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_pydantic_ai_agent_answers(kind):
    model = kind(MODEL, provider=OpenAIProvider(base_url=URL + "/v1", api_key="none"))
    agent = Agent(model, instructions="You are a helpful assistant.")
    run = agent.run_sync(CAPITAL, model_settings=ModelSettings(temperature=0, max_tokens=40, timeout=120))
    assert "Paris" in run.output
    assert run.usage.output_tokens > 0


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_pydantic_ai_agent_gives_a_structure(kind):
    import pydantic

    class Town(pydantic.BaseModel):
        name: str
        large: bool

    model = kind(MODEL, provider=OpenAIProvider(base_url=URL + "/v1", api_key="none"))
    agent = Agent(model, output_type=Town)
    run = agent.run_sync("Describe Paris.", model_settings=ModelSettings(temperature=0, max_tokens=200, timeout=120))
    assert isinstance(run.output, Town)
