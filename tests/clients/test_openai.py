"""The official `openai` client against a running router. PENSTOCK_URL names it; tests/e2e starts it."""

import asyncio
import json
import os
import urllib.request

import openai
import pytest

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client():
    return openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


def metric(name):
    """The sum of a metric's series whose line starts with `name`."""
    with urllib.request.urlopen(os.environ["PENSTOCK_OPS"] + "/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content


def test_usage_counts_prompt_and_answer(client):
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    longer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "word " * 50}], temperature=0, max_tokens=1
    )
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens + 40


def test_stream_says_what_the_folded_answer_says(client):
    folded = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == folded.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == folded.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_completion_and_its_stream(client):
    ask = dict(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8)
    folded = client.completions.create(**ask)
    assert folded.object == "text_completion"
    assert "Paris" in folded.choices[0].text
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True))
    assert streamed == folded.choices[0].text


def test_several_prompts_are_several_choices(client):
    prompts = ["The capital of France is", "The capital of Italy is"]
    together = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=6)
    assert sorted(choice.index for choice in together.choices) == [0, 1]
    for prompt, choice in zip(prompts, sorted(together.choices, key=lambda c: c.index)):
        alone = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=6)
        assert choice.text == alone.choices[0].text


def test_a_seed_repeats_and_another_differs(client):
    def draw(seed):
        story = [{"role": "user", "content": "Tell me a story about a river."}]
        answer = client.chat.completions.create(model=MODEL, messages=story, seed=seed, temperature=1.2, max_tokens=40)
        return answer.choices[0].message.content

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_stop_texts_end_the_answer_before_them(client):
    ask = dict(model=MODEL, prompt="1, 2, 3, 4, 5, 6,", temperature=0, max_tokens=40)
    free = client.completions.create(**ask).choices[0].text
    stop = free[8:12]
    cut = client.completions.create(**ask, stop=[stop, "never said"]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == free[: free.index(stop)]
    kept = client.completions.create(**ask, stop=stop, extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.text == free[: free.index(stop) + len(stop)]


def test_logit_bias_and_vllm_names_are_honoured(client):
    ask = json.dumps({"model": MODEL, "prompt": " Paris"}).encode()
    with urllib.request.urlopen(URL + "/v1/tokenize", data=ask) as response:
        banned = json.load(response)["tokens"]
    ask = dict(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8)
    without = client.completions.create(**ask, logit_bias={str(token): -100 for token in banned})
    assert " Paris" not in without.choices[0].text
    longer = client.completions.create(**ask | {"max_tokens": 30}, extra_body={"ignore_eos": True, "top_k": 5})
    assert longer.usage.completion_tokens == 30


def test_models_are_listed(client):
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    "error, change, param, code",
    [
        (openai.NotFoundError, {"model": "gpt-none"}, "model", "caller_model_not_found"),
        (openai.BadRequestError, {"messages": []}, "messages", "caller_invalid_request"),
        (openai.BadRequestError, {"temperature": -1}, "temperature", "caller_invalid_request"),
        (openai.BadRequestError, {"max_tokens": 0}, "max_tokens", "caller_invalid_request"),
        (openai.BadRequestError, {"n": 0}, "n", "caller_invalid_request"),
        (openai.BadRequestError, {"response_format": {"type": "xml"}}, "response_format", "caller_invalid_request"),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "x " * 9000}]}, None, "caller_context_too_long"),
    ],
)
def test_errors_are_the_clients_own_classes(client, error, change, param, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": CAPITAL} | change)
    assert caught.value.code == code
    if param:
        assert caught.value.param.startswith(param)
    if code == "caller_model_not_found":
        assert MODEL in caught.value.message


def test_a_timeout_of_the_client_ends_the_work(client):
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model=MODEL, messages=CAPITAL, max_tokens=4000, timeout=0.3, extra_body={"ignore_eos": True}
        )
    wait_until_idle()


def test_a_deadline_ends_the_answer(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=CAPITAL,
            max_tokens=4000,
            extra_headers={"x-penstock-deadline-ms": "400"},
            extra_body={"ignore_eos": True},
        )
    assert caught.value.status_code == 504
    assert caught.value.code == "capacity_deadline_exceeded"
    wait_until_idle()


def test_leaving_a_stream_frees_its_blocks(client):
    stream = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    seen = [next(iter(stream)) for _ in range(3)]
    assert len(seen) == 3
    assert metric('penstock_kv_blocks{state="used"}') > 0
    stream.close()
    wait_until_idle()


def test_the_async_client_streams_many_at_once():
    async def one(client, number):
        stream = await client.completions.create(
            model=MODEL, prompt=f"{number} plus one is", temperature=0, max_tokens=12, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def many():
        async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(12)))

    first, second = asyncio.run(many()), asyncio.run(many())
    assert first == second
    assert all(first)


def wait_until_idle():
    """Asks until nothing is in flight: the router learns of a lost client when its connection closes."""
    for _ in range(2000):
        if metric('penstock_kv_blocks{state="used"}') == 0 and metric('penstock_sequences{') == 0:
            return
    raise AssertionError("sequences still hold blocks after their client left")
