"""A stand-in for the model providers outside: it answers OpenAI's chat completions and shows what it was sent.

    python3 deploy/examples/provider.py --port 8090

    POST /NAME/v1/chat/completions   the provider NAME, as upstreams of a catalogue call it
    GET  /seen                       every body that came, a line each, with the provider's name; ?model=M waits for one for M
    POST /away, /back                from now on every provider answers 503; and does its work again
"""

import argparse
import http.server
import json
import threading
import urllib.parse

ANSWER = ["Thank", " you", " for", " asking."]
PATIENCE = 10  # seconds

seen, arrived, away = [], threading.Condition(), threading.Event()


class Provider(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        provider, _, call = self.path.strip("/").partition("/")
        if provider in ("away", "back"):
            away.set() if provider == "away" else away.clear()
            self.reply(200, "text/plain", f"the providers are {provider}\n")
        elif call != "v1/chat/completions":
            self.reply(404, "application/json", failure(f"there is no {self.path}"))
        elif away.is_set():
            self.reply(503, "application/json", failure("we are away"))
        else:
            asked = json.loads(body)
            with arrived:
                seen.append({"provider": provider, **asked})
                arrived.notify_all()
            self.answer(asked)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path != "/seen":
            return self.reply(404, "text/plain", f"there is no {url.path}\n")
        for model in urllib.parse.parse_qs(url.query).get("model", []):
            with arrived:
                arrived.wait_for(lambda: any(one["model"] == model for one in seen), PATIENCE)
        self.reply(200, "text/plain", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in seen))

    def answer(self, asked):
        head = {"id": f"chatcmpl-{len(seen)}", "created": 0, "model": asked["model"]}
        usage = {"prompt_tokens": 10, "completion_tokens": len(ANSWER), "total_tokens": 10 + len(ANSWER)}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(ANSWER)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return self.reply(200, "application/json", json.dumps(whole))
        head["object"] = "chat.completion.chunk"
        choices = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in ANSWER]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        events = [{**head, "choices": [choice]} for choice in choices] + [{**head, "choices": [], "usage": usage}]
        lines = [json.dumps(event) for event in events] + ["[DONE]"]
        self.reply(200, "text/event-stream", "".join(f"data: {line}\n\n" for line in lines))

    def reply(self, status, kind, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def failure(message):
    return json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8090)
    http.server.ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Provider).serve_forever()


if __name__ == "__main__":
    main()
