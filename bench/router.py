"""`make bench-router`: Penstock's router beside SMG and vllm-router, all in front of the same scripted engines.

Penstock's router speaks gRPC to two scripted workers. The peers stand in front of two OpenAI endpoints, each a Penstock
router with a scripted worker of its own. What a router adds is the mean time of an answer through it minus the mean of
the same load on what stands behind it: for Penstock the worker itself (`penstock bench --worker`), for the peers the
endpoint. Its own processor time a request is read from /proc. Load, routers and engines share the machine's cores.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile

from side import PENSTOCK, Process, free_port, load, machine, median, table

ANY = "127.0.0.1:0"
SHAPES = [("16 tokens, c = 1", 1, 400, 16), ("64 tokens, c = 64", 64, 1500, 64)]


class Rig:
    """etcd, and parts of clusters over it."""

    def __init__(self, etcd, stack):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="penstock-bench-"))
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.etcd = client
        self.parts = 0
        server = stack.enter_context(Process(etcd, "--data-dir", self.dir / "etcd", "--listen-client-urls", client, "--advertise-client-urls",
                                             client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                                             "--initial-cluster", f"default={peer}"))
        server.wait_url(f"{client}/health")

    def part(self, stack, kind, *flags):
        self.parts += 1
        ready = self.dir / f"{kind}-{self.parts}.json"
        process = stack.enter_context(Process(PENSTOCK, kind, "--etcd", self.etcd, "--ready-file", ready, "--grpc", ANY, "--ops", ANY,
                                              "--data-dir", self.dir / f"{kind}-{self.parts}", *flags))
        return process, process.wait_file(ready)

    def worker(self, stack, model):
        return self.part(stack, "worker", "--runner", "scripted", "--model", model, "--scripted-prefill-rate", 100_000_000,
                         "--scripted-step-time", "0ms", "--max-sequences", 128)[1]["grpc"]

    def router(self, stack):
        process, addresses = self.part(stack, "router", "--http", ANY, "--admin", ANY)
        return process, f"http://{addresses['http']}"


def peer(stack, kind, upstreams):
    port = free_port()
    module = {"SMG": ["smg.cli", "launch"], "vllm-router": ["vllm_router.launch_router"]}[kind]
    process = stack.enter_context(Process(sys.executable, "-m", *module, "--host", "127.0.0.1", "--port", port, "--worker-urls", *upstreams,
                                          "--policy", "round_robin", "--health-check-endpoint", "/v1/models",
                                          "--prometheus-port", free_port(), "--log-level", "error"))
    url = f"http://127.0.0.1:{port}"
    process.wait_url(f"{url}/v1/models")
    return process, url


def run(target, model, shape, key=None):
    _, concurrency, requests, tokens = shape
    flags = ["--worker", target] if model is None else ["--url", target, "--model", model]
    flags += ["--key", key, "--plain"] if key else []
    return load(*flags, "-c", concurrency, "--requests", requests, "--max-tokens", tokens, "--prompt-tokens", 32, "--warmup", 20)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", required=True, help="the etcd server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["SMG", "vllm-router"])
    args = parser.parse_args()
    print(f"{machine()}; {args.rounds} rounds\n", flush=True)
    with contextlib.ExitStack() as stack:
        ours, theirs = Rig(args.etcd, stack), [Rig(args.etcd, stack) for _ in range(2)]
        worker = [f"http://{ours.worker(stack, 'rehearsal')}" for _ in range(2)][0]
        ends = []
        for rig in theirs:
            rig.worker(stack, "rehearsal")
            ends.append(rig.router(stack)[1])
        sides = {"penstock": (*ours.router(stack), worker, None)}
        for kind in args.peers:
            sides[kind] = (*peer(stack, kind, ends), ends[0], "rehearsal")
        rows = []
        for shape in SHAPES:
            found = {kind: [] for kind in sides}
            for _ in range(args.rounds):
                for kind, (process, url, behind, model) in sides.items():
                    before = run(behind, model, shape)
                    cpu = process.cpu_seconds()
                    through = run(url, "rehearsal", shape)
                    cpu = process.cpu_seconds() - cpu
                    found[kind].append((through["total_ms"]["mean"] - before["total_ms"]["mean"],
                                        through["requests_per_second"], cpu / (through["ok"] + 20) * 1e6))
            for kind, figures in found.items():
                added, rate, cpu = (median(column) for column in zip(*figures))
                rows.append((shape[0], kind, f"{added:.2f} ms", f"{rate:.0f}", f"{cpu:.0f} µs", f"{sides[kind][0].peak_mib():.0f} MiB"))
        print()
        table(["", "router", "added, mean", "answers/s", "CPU an answer", "peak memory"], rows)


if __name__ == "__main__":
    main()
