"""A rehearsal of autoscaling: a small controller obeys the chart's ScaledObject with what a real Prometheus says, while
load trebles and falls to a fifth. Its minute is a second."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from chart import of, render
from kubelet import LIMIT, Cluster, ask
from prometheus import Prometheus

MINUTE = 1.0
# A stand-in's step takes 10 ms, so an answer of 40 tokens half a second; a worker has four seats.
BODY = {"model": "rehearsal", "prompt": "Once", "max_tokens": 40, "ignore_eos": True}
VALUES = {
    "router": {"replicas": 1},
    "etcd": {"internal": {"replicas": 1, "storage": ""}},
    "workers": [
        {
            **{"name": "grows", "model": "rehearsal", "runner": "scripted", "maxSequences": 4},
            "autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 4, "cooldownSeconds": 300},
        }
    ],
    "monitoring": {"enabled": True},
}


class Controller:
    """A HorizontalPodAutoscaler, as KEDA makes one of a ScaledObject, and the StatefulSet that follows it."""

    def __init__(self, cluster, prometheus):
        self.cluster, self.prometheus = cluster, prometheus
        self.spec = of(cluster.objects, "ScaledObject", "test-worker-grows")["spec"]
        scale_down = self.spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        [policy] = scale_down["policies"]
        assert policy == {"type": "Pods", "value": 1, "periodSeconds": 60}
        self.window = scale_down["stabilizationWindowSeconds"] / 60 * MINUTE
        self.pods, self.history, self.asked = [], [], []
        self.ended, self.failed = threading.Event(), None
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.follow(self.spec["minReplicaCount"])
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        assert self.failed is None, self.failed

    def run(self):
        try:
            while not self.ended.wait(MINUTE):
                self.follow(self.decide())
        except Exception as error:
            self.failed = error
            raise

    def decide(self):
        """The most that a trigger asks for; less only if none has asked for more within the window."""
        wanted = []
        for trigger in self.spec["triggers"]:
            assert trigger["metricType"] == "AverageValue"
            series = self.prometheus.series(trigger["metadata"]["query"])
            share = float(series[0]["value"][1]) / float(trigger["metadata"]["threshold"]) if series else 0
            within = abs(share / len(self.pods) - 1) <= 0.1
            wanted.append(len(self.pods) if within else math.ceil(share))
        now = time.monotonic()
        self.asked = [(at, count) for at, count in self.asked if now - at < self.window] + [(now, max(wanted))]
        count = max(count for _, count in self.asked)
        count = max(count, len(self.pods) - 1)
        return min(max(count, self.spec["minReplicaCount"]), self.spec["maxReplicaCount"])

    def follow(self, count):
        """Starts pods in the order of their numbers, and ends them from the last, which drains them."""
        while len(self.pods) < count:
            self.pods.append(self.cluster.start(f"test-worker-grows-{len(self.pods)}"))
        while len(self.pods) > count:
            pod = self.pods.pop()
            pod.process.terminate()
            assert pod.process.wait(60) == 0, pod.said()
        if not self.history or self.history[-1] != count:
            self.history.append(count)


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path, render(values=VALUES)) as running:
        running.start("test-etcd-0")
        yield running


def test_a_pool_follows_its_load_and_loses_nothing(cluster, tmp_path):
    (tmp_path / "prometheus").mkdir()
    answers = []
    with (
        Prometheus(cluster, tmp_path / "prometheus") as prometheus,
        Controller(cluster, prometheus) as controller,
        ThreadPoolExecutor(64) as clients,
    ):
        cluster.start("test-router-0")
        router = cluster.pods["test-router-0"]

        def load(rate, enough):
            """Requests at a steady rate, until it is enough; the pool's sizes meanwhile."""
            before, end = len(controller.history), time.monotonic() + LIMIT
            while not enough():
                assert controller.failed is None, controller.failed
                assert time.monotonic() < end, f"{rate} requests a second: sizes {controller.history}"
                answers.append(clients.submit(ask, router, BODY))
                time.sleep(1 / rate)
            return controller.history[before - 1 :]

        seconds = time.monotonic()
        load(4, lambda: time.monotonic() - seconds > 8)
        risen = load(12, lambda: controller.history[-1] >= 2)
        assert risen == sorted(risen), "it grows"
        seconds = time.monotonic()
        load(12, lambda: time.monotonic() - seconds > 12)
        assert controller.history[-1] >= 2, "what is in use stays"
        load(0.8, lambda: controller.history[-1] == 1)
        statuses = [answer.result()[0] for answer in answers]
    assert set(statuses) == {200}, f"{len(statuses)} requests, sizes {controller.history}"
    rises = [late > early for early, late in zip(controller.history, controller.history[1:], strict=False)]
    turns = sum(one != other for one, other in zip(rises, rises[1:], strict=False))
    assert turns <= 3, f"more than one flap beside the rise and fall of load: {controller.history}"
    print(f"{len(statuses)} requests, sizes {controller.history}")
