"""The catalogue's Job: what its pod runs puts a catalogue in force, and one that is not valid leaves it as it was."""

import json
import subprocess

import pytest
from chart import render
from kubelet import PROGRAMS, Cluster, until

ONE = """
models: [{name: rehearsal, ceiling: restricted, versions: [{id: v1, source: "file:/models/none.gguf"}]}]
routes: [{name: assistant, targets: [{model: rehearsal}]}]
"""
WRONG = "routes:\n  - nam: assistant\n"
ADMIN = {"admin.key": "5e" * 32}


def values(catalogue):
    return {
        "router": {"replicas": 1, "name": True, "noEgress": True, "maxStale": "12h"},
        "etcd": {"internal": {"replicas": 1, "storage": ""}},
        "workers": [{"name": "stand-in", "model": "rehearsal", "runner": "scripted"}],
        "catalogue": {"enabled": True, "inline": catalogue},
        "secrets": {"adminKey": {"secret": "admin"}},
    }


def in_force(cluster, folder):
    """The names of the routes that a router tells."""
    key = folder / "key"
    key.write_text(ADMIN["admin.key"])
    server = f"{cluster.pods['test-router-0']}:8081"
    flags = ["--server", server, "--admin-key-file", key, "--insecure", "-o", "json"]
    done = subprocess.run([PROGRAMS["penstock"], "get", "routes", *flags], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(
    subprocess.run([PROGRAMS["penstock"], "apply", "--help"], capture_output=True, check=False).returncode != 0,
    reason="this binary has no `penstock apply`",
)
def test_the_job_applies_a_catalogue_and_refuses_a_wrong_one(tmp_path):
    with Cluster(tmp_path, render(values=values(ONE)), {"admin": ADMIN}) as cluster:
        for name in ("test-etcd-0", "test-worker-stand-in-0", "test-router-0"):
            cluster.start(name)
        job = cluster.start("test-catalogue")
        assert job.process.wait(60) == 0, job.said()
        until(lambda: "assistant" in in_force(cluster, tmp_path), lambda: in_force(cluster, tmp_path))

        cluster.objects = render(values=values(WRONG))
        with pytest.raises(AssertionError) as ended:
            cluster.start("test-catalogue")
        assert "check of test-catalogue ended with 2" in str(ended.value)
        assert "nam" in str(ended.value), "it names the line at fault"
        assert "assistant" in json.dumps(in_force(cluster, tmp_path)), "the old one stays"
