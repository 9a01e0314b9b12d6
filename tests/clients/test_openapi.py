"""The description of the faces: whole by the official clients' types, and true by Schemathesis' requests."""

import collections
import json
import os
import urllib.request

import pytest
import schemathesis
from anthropic.types import message_count_tokens_params, message_create_params
from hypothesis import HealthCheck, Phase, settings
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from schemathesis import checks
from schemathesis.specs.openapi.checks import response_schema_conformance

URL = os.environ["PENSTOCK_URL"]
MODEL = os.environ["PENSTOCK_MODEL"]
EXAMPLES = 50
ASKING = {"structured_outputs", "response_format", "text", "tools", "tool_choice"}
# Headers of the client's, which its types list beside the body's fields.
HEADERS = {"workspace_id"}

with urllib.request.urlopen(URL + "/openapi.json") as response:
    DOCUMENT = json.load(response)

# How often each call was answered with which status.
SEEN = collections.Counter()

schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.update(base_url=URL)


@pytest.mark.parametrize(
    "path, params",
    [
        ("/v1/chat/completions", chat_create_params.CompletionCreateParamsBase),
        ("/v1/completions", completion_create_params.CompletionCreateParamsBase),
        ("/v1/responses", response_create_params.ResponseCreateParamsBase),
        ("/v1/messages", message_create_params.MessageCreateParamsBase),
        ("/v1/messages/count_tokens", message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_field_that_the_client_knows_is_described(path, params):
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(params.__annotations__) - HEADERS <= set(body["properties"])


def within_reach(case):
    """The model that is there and a short answer, so that some of the requests are answered."""
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = MODEL
        limit = {"/v1/responses": "max_output_tokens", "/v1/messages/count_tokens": None}.get(case.path, "max_tokens")
        if limit and case.path not in ("/v1/tokenize", "/v1/detokenize"):
            case.body[limit] = 4
        for name in ("max_completion_tokens", "min_tokens", "stream", "stream_options", "n", "best_of"):
            case.body.pop(name, None)
        # Most made-up grammars, schemas and tools, and many fields together, are rightly refused: every second request
        # has two fields at most beside what it must have.
        if len(json.dumps(case.body)) % 2:
            needed = {"model", "messages", "prompt", "input", "tokens", limit}
            others = [name for name in case.body if name not in needed]
            for name in others[2:] + [name for name in others[:2] if name.startswith("guided_") or name in ASKING]:
                del case.body[name]


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case):
    within_reach(case)
    response = case.call_and_validate(checks=[checks.not_a_server_error, response_schema_conformance], timeout=60)
    SEEN[case.path, response.status_code] += 1


def test_some_requests_of_every_call_were_answered():
    # A made-up model is never there.
    paths = set(DOCUMENT["paths"]) - {"/v1/models/{model}"}
    assert paths == {path for path, status in SEEN if status == 200 and path in paths}, SEEN
