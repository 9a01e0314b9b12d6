"""Constraints, log-probabilities and several choices through the official client. PENSTOCK_URL names a running router
whose model is a small real one; tests/e2e starts it."""

import asyncio
import json
import os
import re
import urllib.request
from enum import Enum

import jsonschema
import openai
import pydantic
import pytest

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]
ASK = [{"role": "user", "content": "Answer with what is asked for."}]
SAMPLES = 3
# Room for every answer of the schemas that comes to an end.
ROOM = 400

# Formats that need no calendar: a date's day is held to its month, not to its year.
FORMATS = jsonschema.FormatChecker(["ipv4", "uuid", "email"])

with open(os.path.join(os.path.dirname(__file__), "schemas.json"), encoding="utf-8") as file:
    SCHEMAS = json.load(file)

REGEXES = [
    r"[a-z]{3,8}",
    r"\d{4}-\d{2}-\d{2}",
    r"(yes|no|maybe)",
    r"[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9}){0,2}",
    r"\+?\d{6,12}",
    r"(GET|POST) /[a-z]{1,8}(/\d{1,3})?",
    r"[一-龥]{1,5}",
    r"#[0-9a-fA-F]{6}",
    r"\"(\\.|[^\"\\\n]){0,9}\"",
    r"(a|b){1,9}!?",
]
CHOICES = [["positive", "negative"], ["a.b", "a+b", "(a)"], ["日本", "中国", "한국"], ["x", "xy", "xyz"], ["1/2", "<b>", "#-~&"]]


@pytest.fixture
def client():
    return openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


def together(asks, at_once=16):
    """The first choice of each request, asked for side by side."""

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=300) as client:
            gate = asyncio.Semaphore(at_once)

            async def one(ask):
                async with gate:
                    answer = await client.chat.completions.create(**{"model": MODEL, "messages": ASK} | ask)
                    return answer.choices[0]

            return await asyncio.gather(*(one(ask) for ask in asks))

    return asyncio.run(all_of_them())


def test_every_answer_is_valid_by_its_schema():
    asked = [(schema, seed) for schema in SCHEMAS for seed in range(SAMPLES)]
    asks = [
        {
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}},
            "temperature": 1,
            "seed": seed,
            "max_tokens": ROOM,
        }
        for schema, seed in asked
    ]
    choices = together(asks)
    whole = 0
    for (schema, seed), choice in zip(asked, choices):
        # What max_tokens cuts is no answer.
        if choice.finish_reason == "length":
            continue
        assert choice.finish_reason == "stop"
        whole += 1
        text = choice.message.content
        try:
            jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))
        except Exception as error:
            raise AssertionError(f"{schema} with seed {seed}: {text!r}") from error
    assert len(SCHEMAS) == 200
    assert whole >= 0.95 * len(asked), f"{whole} of {len(asked)} answers came to an end"


def test_regexes_and_choices_are_matched_whole():
    asked = [("regex", regex, re.compile(regex)) for regex in REGEXES]
    asked += [("choice", texts, re.compile("|".join(map(re.escape, texts)))) for texts in CHOICES]
    asked = [(kind, value, pattern, seed) for kind, value, pattern in asked for seed in range(SAMPLES)]

    def ask(kind, value, seed):
        # Half by the older names, half by the newer one.
        extra = {f"guided_{kind}": value} if seed % 2 else {"structured_outputs": {kind: value}}
        return {"extra_body": extra, "temperature": 1, "seed": seed, "max_tokens": 100}

    choices = together([ask(kind, value, seed) for kind, value, _, seed in asked])
    for (_, value, pattern, _), choice in zip(asked, choices):
        assert choice.finish_reason == "stop"
        assert pattern.fullmatch(choice.message.content), (value, choice.message.content)


def test_a_grammar_and_any_object(client):
    grammar = 'start: "SELECT " column " FROM " table\ncolumn: /[a-z]{1,8}/\ntable: "users" | "orders"'
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=60, seed=1, extra_body={"guided_grammar": grammar}
    )
    assert re.fullmatch("SELECT [a-z]{1,8} FROM (users|orders)", answer.choices[0].message.content)
    answers = together(
        [{"response_format": {"type": "json_object"}, "seed": seed, "max_tokens": 300, "temperature": 0.5} for seed in range(6)]
    )
    whole = [choice.message.content for choice in answers if choice.finish_reason == "stop"]
    assert whole and all(isinstance(json.loads(text), dict) for text in whole)


def test_a_stream_and_a_completion_are_held_too(client):
    ask = dict(model=MODEL, temperature=1, seed=3, max_tokens=60, extra_body={"guided_regex": "[a-d]{5,10}!"})
    folded = client.completions.create(prompt="Say something:", **ask).choices[0]
    assert re.fullmatch("[a-d]{5,10}!", folded.text) and folded.finish_reason == "stop"
    chunks = list(client.completions.create(prompt="Say something:", stream=True, **ask))
    assert "".join(chunk.choices[0].text for chunk in chunks) == folded.text


class Mood(str, Enum):
    good = "good"
    bad = "bad"


class Step(pydantic.BaseModel):
    number: int = pydantic.Field(ge=0, le=9)
    note: str = pydantic.Field(max_length=20)


class Plan(pydantic.BaseModel):
    title: str = pydantic.Field(max_length=20)
    mood: Mood
    steps: list[Step] = pydantic.Field(max_length=2)


def test_the_client_parses_into_its_own_models(client):
    answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Plan, seed=5, max_tokens=ROOM)
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Plan)
    assert choice.message.parsed == Plan.model_validate_json(choice.message.content)


def test_penalties_bias_and_stops_leave_an_answer_valid(client):
    schema = {"type": "array", "items": {"enum": ["aa", "bb"]}, "minItems": 2, "maxItems": 4}
    with urllib.request.urlopen(URL + "/v1/tokenize", data=json.dumps({"model": MODEL, "prompt": "]"}).encode()) as response:
        [closing] = json.load(response)["tokens"]
    for extra in [
        {"repetition_penalty": 2.0, "min_p": 0.3},
        {"top_k": 1},
        {"ignore_eos": True},
        {"min_tokens": 40},
    ]:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            max_tokens=60,
            seed=2,
            logit_bias={str(closing): -50},
            frequency_penalty=1,
            extra_body={"guided_json": schema} | extra,
        )
        [choice] = answer.choices
        assert choice.finish_reason == "stop", extra
        jsonschema.validate(json.loads(choice.message.content), schema)


def test_several_choices_are_the_requests_with_the_seeds_that_follow(client):
    story = [{"role": "user", "content": "Tell me a story about a river."}]
    ask = dict(model=MODEL, messages=story, temperature=1, max_tokens=24)
    several = client.chat.completions.create(**ask, n=4, seed=11)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    single = [client.chat.completions.create(**ask, seed=11 + at) for at in range(4)]
    texts = [choice.message.content for choice in several.choices]
    assert texts == [answer.choices[0].message.content for answer in single]
    assert len(set(texts)) > 1
    assert several.usage.prompt_tokens == single[0].usage.prompt_tokens
    assert several.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in single)
    streamed = ["", "", "", ""]
    for chunk in client.chat.completions.create(**ask, n=4, seed=11, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_the_best_is_the_likeliest_by_token(client):
    ask = dict(model=MODEL, prompt="The river", temperature=1, max_tokens=12, seed=3)
    made = client.completions.create(**ask, n=4, logprobs=0).choices

    def quality(choice):
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values) if values else 0

    best = client.completions.create(**ask, best_of=4, echo=True).choices
    assert [choice.text for choice in best] == ["The river" + max(made, key=quality).text]


def test_log_probabilities_of_a_conversation(client):
    ask = dict(model=MODEL, messages=ASK, temperature=0, max_tokens=10, logprobs=True, top_logprobs=20)
    choice = client.chat.completions.create(**ask).choices[0]
    assert len(choice.logprobs.content) == 10
    assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content
    for token in choice.logprobs.content:
        ranked = [other.logprob for other in token.top_logprobs]
        assert len(ranked) == 20 and ranked == sorted(ranked, reverse=True)
        # At temperature 0 the likeliest is taken.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, ranked[0])
        assert sum(2.718281828459045**value for value in ranked) < 1.0001
    streamed = []
    for chunk in client.chat.completions.create(**ask, stream=True):
        streamed += (chunk.choices[0].logprobs.content or []) if chunk.choices[0].logprobs else []
    assert streamed == choice.logprobs.content
    bare = client.chat.completions.create(**ask | {"top_logprobs": None, "temperature": 1.5, "seed": 1})
    assert all(token.top_logprobs == [] and token.logprob < 0 for token in bare.choices[0].logprobs.content)


def test_log_probabilities_of_a_completion(client):
    ask = dict(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=6, logprobs=3)
    choice = client.completions.create(**ask).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert [choice.text[at : at + len(token)] for at, token in zip(told.text_offset, told.tokens)] == told.tokens
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs):
        assert len(top) == 3 and top[token] == logprob == max(top.values())


BAD = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "change, param, said",
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": BAD}}}, "response_format", "itself"),
        ({"extra_body": {"guided_json": {"type": "object", "not": {}}}}, "guided_json", "not"),
        ({"extra_body": {"guided_json": {"$ref": "#/$defs/none"}}}, "guided_json", "none"),
        ({"extra_body": {"guided_json": {"description": "x" * 66000}}}, "guided_json", "65536"),
        ({"extra_body": {"guided_regex": "(?=a)b"}}, "guided_regex", "look-around"),
        ({"extra_body": {"guided_regex": "(a"}}, "guided_regex", "unclosed group"),
        ({"extra_body": {"guided_grammar": "start: nobody"}}, "guided_grammar", "nobody"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "structured_outputs", "only one"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, "guided_choice", "guided_regex"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"n": 17}, "n", "16"),
        ({"n": 16, "max_tokens": 8000}, "n", "at once"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client, change, param, said):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK} | change)
    assert caught.value.param == param
    assert said in caught.value.message
