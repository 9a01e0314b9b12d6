"""Rendered pods, started as processes from what their manifests say, over a real etcd; a real Prometheus scrapes them
with the chart's own monitors and rules."""

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from chart import CHART, of, render
from kubelet import Cluster, ask, get, until
from prometheus import Prometheus

REHEARSAL = {
    "router": {"replicas": 2, "deadlineSeconds": 60},
    "etcd": {"internal": {"replicas": 3, "storage": ""}},
    "workers": [{"name": "stand-in", "model": "rehearsal", "runner": "scripted", "replicas": 2}],
    "monitoring": {"enabled": True, "interval": "1s"},
    "networkPolicy": {"enabled": True},
}


def start_together(cluster, names):
    """Members of an etcd are ready only together."""
    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(cluster.start, names))


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The whole of a plaintext release, and a Prometheus beside it."""
    objects = render(values=REHEARSAL)
    with Cluster(tmp_path_factory.mktemp("rehearsal"), objects) as cluster:
        start_together(cluster, [f"test-etcd-{index}" for index in range(3)])
        cluster.parts = [
            cluster.start(name)
            for name in ("test-worker-stand-in-0", "test-worker-stand-in-1", "test-router-0", "test-router-1")
        ]
        yield cluster


def test_the_rendered_pods_start_and_the_test_pod_gets_its_answer(rehearsal):
    told = rehearsal.start("test-test").answer()
    assert told["model"] == "rehearsal"
    assert told["choices"][0]["finish_reason"] in ("stop", "length")
    assert told["usage"]["prompt_tokens"] > 0


def test_both_routers_serve_both_workers(rehearsal):
    both = 'penstock_members{state="ready"} 2'
    for _, ip, _ in rehearsal.behind({"app.kubernetes.io/component": "router"}):
        until(lambda ip=ip: both in get(f"http://{ip}:9464/metrics")[1], "no two workers")
        status, body = ask(ip, {"model": "rehearsal", "prompt": "Once", "max_tokens": 4})
        assert status == 200, body


@pytest.fixture(scope="module")
def prometheus(rehearsal, tmp_path_factory):
    with Prometheus(rehearsal, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


@pytest.fixture(scope="module")
def touched(rehearsal, prometheus):
    """Every counter that dashboards and alerts read has been counted up, and scraped before and after."""
    until(
        lambda: all(target["health"] == "up" for target in prometheus.api("targets")["activeTargets"]),
        lambda: prometheus.api("targets"),
    )
    [(_, ip, _), *_] = rehearsal.behind({"app.kubernetes.io/component": "router"})

    def traffic():
        # A stand-in may draw the token that ends its answer, at once.
        whole = {"model": "rehearsal", "prompt": "Once upon a time " * 20, "max_tokens": 16, "ignore_eos": True}
        status, body = ask(ip, whole)
        assert status == 200, body
        late = {"x-penstock-deadline-ms": "30"}
        status, body = ask(ip, whole | {"max_tokens": 400}, late)
        assert (status, "capacity_deadline_exceeded" in body) == (504, True), body
        counted = ("penstock_refusals_total", 'penstock_requests_total{code="ok"}')
        return prometheus.series(" and ".join(f"sum(rate({name}[30s])) > 0" for name in counted))

    until(traffic, "no rate of what was counted")
    return prometheus


def panels():
    for path in sorted((CHART / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield pytest.param(target["expr"], id=f"{path.stem}: {panel['title']}: {target['refId']}")


@pytest.mark.parametrize("expr", list(panels()))
def test_a_dashboards_query_gives_series(touched, expr):
    query = expr.replace("$__rate_interval", "1m").replace("$__range", "1m").replace('"$release"', '"test"')
    assert "$" not in query
    series = until(lambda: touched.series(query), f"no series: {query}")
    assert any(each["value"][1] != "NaN" for each in series)


def alerts():
    for rule in yaml.safe_load((CHART / "alerts/penstock.yaml").read_text())["groups"][0]["rules"]:
        yield pytest.param(rule, id=rule["alert"])


@pytest.mark.parametrize("rule", list(alerts()))
def test_an_alert_reads_what_is_there(touched, rule):
    """Its comparison, which drops what does not fire, is made to answer 0 or 1."""
    query = re.sub(r" ([<>]) (?=[0-9])", r" \1 bool ", rule["expr"]).replace('release=~".*"', 'release="test"')
    series = until(lambda: touched.series(query), f"no series: {query}")
    assert {each["value"][1] for each in series} <= {"0", "1"}


def test_prometheus_runs_the_charts_rules_for_its_own_release(touched):
    rules = [rule for group in touched.api("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(list(alerts()))
    until(lambda: all(rule["health"] == "ok" for rule in touched.api("rules")["groups"][0]["rules"]), "rules fail")
    assert all('namespace="space",release="test"' in rule["query"] for rule in rules)


def test_autoscaling_reads_what_is_there(touched):
    scaled = REHEARSAL | {"workers": [REHEARSAL["workers"][0] | {"autoscaling": {"enabled": True}}]}
    [scaler] = of(render(values=scaled), "ScaledObject")
    for trigger in scaler["spec"]["triggers"]:
        [series] = touched.series(trigger["metadata"]["query"])
        assert float(series["value"][1]) >= 0


def test_an_adapter_that_follows_the_charts_rules_reads_what_is_there(touched):
    scaling = {"autoscaling": {"enabled": True, "type": "hpa"}}
    values = REHEARSAL | {
        "monitoring": {"enabled": True, "adapterRules": True},
        "workers": [REHEARSAL["workers"][0] | scaling],
    }
    objects = render(values=values)
    config = yaml.safe_load(of(objects, "ConfigMap", "test-adapter-rules")["data"]["config.yaml"])
    rules = {rule["name"]["as"]: rule for rule in config["externalRules"]}
    scaler = of(objects, "HorizontalPodAutoscaler", "test-worker-stand-in")
    for metric in scaler["spec"]["metrics"]:
        rule = rules[metric["external"]["metric"]["name"]]
        asked = metric["external"]["metric"]["selector"]["matchLabels"] | {"namespace": "space"}
        matchers = ",".join(f'{label}="{value}"' for label, value in asked.items())
        name = rule["seriesQuery"].partition("{")[0]
        query = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.LabelMatchers>>", matchers)
        assert touched.series(rule["seriesQuery"])
        [series] = touched.series(query)
        assert float(series["value"][1]) >= 0


def test_pods_that_are_told_to_end_finish_what_they_have(touched, rehearsal):
    """The last test of its release: a worker goes, then everything, and no request fails."""
    routers = [ip for _, ip, _ in rehearsal.behind({"app.kubernetes.io/component": "router"})]
    # Some seconds of a stand-in's steps of ten milliseconds.
    body = {"model": "rehearsal", "prompt": "Once", "max_tokens": 150, "ignore_eos": True}

    def in_flight():
        shown = "".join(get(f"http://{ip}:9464/metrics")[1] for ip in routers)
        return sum(map(int, re.findall(r"^penstock_requests_in_flight (\d+)", shown, re.MULTILINE)))

    with ThreadPoolExecutor(16) as clients:
        for parts in ([rehearsal.parts[0]], rehearsal.parts[:0:-1]):
            asked = [clients.submit(ask, routers[index % 2], body) for index in range(16)]
            until(lambda: in_flight() == 16, "not all are in flight")
            for part in parts:
                part.process.send_signal(signal.SIGTERM)
            assert [part.process.wait(60) for part in parts] == [0] * len(parts)
            assert [request.result()[0] for request in asked] == [200] * 16
