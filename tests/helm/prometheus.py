"""A real Prometheus beside a cluster, with what the chart's own monitors select and its own rules."""

import json
import subprocess
import urllib.parse

import yaml
from chart import TOOLS, of
from kubelet import NODE, get, until


class Prometheus:
    """Scrapes as the Prometheus operator would have it scrape."""

    def __init__(self, cluster, folder):
        monitors = of(cluster.objects, "ServiceMonitor") + of(cluster.objects, "PodMonitor")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [job for monitor in monitors for job in jobs(cluster, monitor)],
        }
        (folder / "rules.yml").write_text(yaml.safe_dump(of(cluster.objects, "PrometheusRule", "test-alerts")["spec"]))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [TOOLS / "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address={NODE}:9090"], stdout=log, stderr=log)
        until(lambda: get(f"http://{NODE}:9090/-/ready")[0] == 200, (folder / "log").read_text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def api(self, path, **query):
        status, body = get(f"http://{NODE}:9090/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert status == 200, f"{query}: {body}"
        return json.loads(body)["data"]

    def series(self, query):
        return self.api("query", query=query)["result"]


def jobs(cluster, monitor):
    """What the operator makes of a monitor, for pods that do not move."""
    selector = monitor["spec"]["selector"]["matchLabels"]
    [endpoint] = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "ops"
    port = {"router": 9464, "worker": 9465, "etcd": 2381}[selector["app.kubernetes.io/component"]]
    for pod, ip, has in cluster.behind(selector):
        labels = {"namespace": cluster.namespace, "pod": pod}
        for rule in endpoint["relabelings"]:
            # A rule gives a label, or copies one of the pod's, whose name Prometheus spells with underscores.
            source = "".join(rule.get("sourceLabels", []))
            meta = {f"__meta_kubernetes_pod_label_{name.translate(PLAIN)}": value for name, value in has.items()}
            labels[rule["targetLabel"]] = meta[source] if source else rule["replacement"]
        yield {"job_name": pod, "static_configs": [{"targets": [f"{ip}:{port}"], "labels": labels}]}


PLAIN = str.maketrans("./-", "___")
