"""A Python gRPC client made from our proto against a running router. PENSTOCK_GRPC names it; tests/e2e starts it."""

import importlib
import os
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

ADDRESS = os.environ["PENSTOCK_GRPC"]
MODEL = os.environ["PENSTOCK_MODEL"]
PROTO = Path(__file__).parents[2] / "proto"


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    """`inference_pb2` and `inference_pb2_grpc`, made by the official compiler."""
    out = str(tmp_path_factory.mktemp("generated"))
    names = ["types", "inference"]
    files = [f"penstock/v1/{name}.proto" for name in names]
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, out)
    yield tuple(importlib.import_module(f"penstock.v1.inference_{kind}") for kind in ("pb2", "pb2_grpc"))
    sys.path.remove(out)


@pytest.fixture
def channel():
    with grpc.insecure_channel(ADDRESS, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.fixture
def pb(modules):
    return modules[0]


@pytest.fixture
def stub(modules, channel):
    return modules[1].InferenceStub(channel)


def ask(pb, **sampling):
    """The capital of France, most likely tokens first."""
    message = pb.Message(role="user", content="What is the capital of France?")
    return pb.GenerateRequest(
        model=MODEL, chat=pb.Chat(messages=[message]), sampling=pb.Sampling(**{"temperature": 0, **sampling})
    )


def endless(pb):
    return ask(pb, ignore_eos=True, max_tokens=1500)


def refusal(call):
    """The status that a call ends with, and its `google.rpc.ErrorInfo`."""
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    [detail] = rpc_status.from_call(raised.value).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert info.domain == "penstock"
    return raised.value, info


def sequences():
    """How many sequences the worker has."""
    with urllib.request.urlopen(os.environ["PENSTOCK_OPS"] + "/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("penstock_sequences{"))


def until_idle():
    end = time.monotonic() + 30
    while sequences():
        assert time.monotonic() < end, "a sequence that nobody waits for goes on"


def test_an_answer_streams_and_ends_with_its_usage(pb, stub):
    call = stub.Generate(ask(pb))
    pieces = list(call)
    assert len(pieces) > 1
    assert "Paris" in "".join(piece.text for piece in pieces)
    *before, last = pieces
    types = importlib.import_module("penstock.v1.types_pb2")
    assert last.finish_reason == types.FINISH_REASON_STOP
    assert all(piece.finish_reason == types.FINISH_REASON_UNSPECIFIED for piece in before)
    assert not any(piece.HasField("usage") for piece in before)
    assert last.usage.prompt_tokens > 5 and last.usage.completion_tokens >= len(before)
    head = dict(call.initial_metadata())
    assert head["x-penstock-target"] == f"local/{MODEL}" and head["x-penstock-request-id"]


def test_a_limit_is_kept_and_said(pb, stub):
    pieces = list(stub.Generate(ask(pb, max_tokens=3, ignore_eos=True)))
    types = importlib.import_module("penstock.v1.types_pb2")
    assert pieces[-1].finish_reason == types.FINISH_REASON_LENGTH
    assert pieces[-1].usage.completion_tokens == 3


def test_models_are_listed(pb, stub):
    [model] = stub.ListModels(pb.ListModelsRequest()).models
    assert model.name == MODEL and model.context_length > 0


def test_refusals_carry_error_info(pb, stub):
    unknown = ask(pb)
    unknown.model = "gpt-none"
    error, info = refusal(stub.Generate(unknown))
    assert error.code() == grpc.StatusCode.NOT_FOUND and MODEL in error.details()
    assert (info.reason, info.metadata["param"]) == ("caller_model_not_found", "model")
    error, info = refusal(stub.Generate(ask(pb, temperature=-1)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (info.reason, info.metadata["param"]) == ("caller_invalid_request", "temperature")


def test_the_calls_own_deadline_ends_the_work(pb, stub):
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(endless(pb), timeout=0.5))
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until_idle()


def test_a_deadline_that_only_the_router_knows_is_told_with_error_info(pb, stub):
    error, info = refusal(stub.Generate(endless(pb), metadata=[("x-penstock-deadline-ms", "500")]))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert info.reason == "capacity_deadline_exceeded"
    until_idle()


def test_a_call_that_is_cancelled_ends_the_work(pb, stub):
    call = stub.Generate(endless(pb))
    next(call)
    call.cancel()
    until_idle()


def test_reflection_lists_the_service_and_its_messages(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "penstock.v1.Inference" in database.get_services()
    assert "penstock.v1.Admin" not in database.get_services()
    file = database.FindFileContainingSymbol("penstock.v1.GenerateRequest")
    assert file.package == "penstock.v1"
