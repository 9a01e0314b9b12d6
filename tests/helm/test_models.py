"""Releases with a real model: with TLS everywhere, certificates as the chart asks cert-manager for them, and clients
that must show theirs; and with a file that is not the one that was named."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trustme
from chart import ROOT, of, render
from kubelet import Cluster, get, until

MODEL = Path(os.environ.get("PENSTOCK_TEST_MODEL", ROOT / "target/test-data/SmolLM2-135M-Instruct.Q4_1.gguf"))


def issue(objects):
    """What cert-manager does with the chart's Certificates, and the Secrets of a bank's own."""
    parts, clients = trustme.CA(), trustme.CA()

    def secret(authority, trusted, names):
        cert = authority.issue_cert(*names)
        chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems).decode()
        key = cert.private_key_pem.bytes().decode()
        return {"tls.crt": chain, "tls.key": key, "ca.crt": trusted.cert_pem.bytes().decode()}

    secrets = {
        each["spec"]["secretName"]: secret(parts, parts, each["spec"]["dnsNames"])
        for each in of(objects, "Certificate")
    }
    secrets["clients"] = {"ca.crt": clients.cert_pem.bytes().decode()}
    secrets["operator"] = secret(clients, parts, ["operator.example"])
    secrets["admin"] = {"admin.key": "5e" * 32}
    return secrets


def test_with_tls_a_real_model_is_pulled_and_answers_those_with_a_certificate(tmp_path):
    claim = tmp_path / "claim"
    claim.mkdir(mode=0o755)
    shutil.copy(MODEL, claim / "small.gguf")
    values = {
        "router": {"replicas": 1},
        "etcd": {"internal": {"replicas": 1, "storage": ""}},
        "workers": [{"name": "small", "model": "small", "source": "file:/models/small.gguf", "modelClaim": "models"}],
        "tls": {
            **{"mode": "certManager", "issuer": {"name": "bank"}},
            **{"clientCertificates": True, "clientCaSecret": "clients", "operatorSecret": "operator"},
        },
        "secrets": {"adminKey": {"secret": "admin"}},
    }
    objects = render(values=values)
    shown = subprocess.list2cmdline(str(part) for part in objects)
    assert "--insecure" not in shown, "with certificates on both sides nothing is left open"
    secrets = issue(objects)
    with Cluster(tmp_path, objects, secrets, {"models": claim}) as cluster:
        for name in ("test-etcd-0", "test-worker-small-0"):
            cluster.start(name)
        router = cluster.start("test-router-0")
        told = cluster.start("test-test").answer()
        assert told["model"] == "small"
        assert "Paris" in told["choices"][0]["message"]["content"]
        without = ["curl", "-sS", "--insecure", f"https://{cluster.pods['test-router-0']}:8080/v1/models"]
        assert subprocess.run(without, capture_output=True, check=False).returncode != 0
        until(lambda: "refused a connection" in router.said() and "no certificates" in router.said(), router.said)


def test_a_file_with_another_digest_ends_the_init_container_which_says_so(tmp_path):
    claim = tmp_path / "claim"
    claim.mkdir(mode=0o755)
    (claim / "small.gguf").write_bytes(b"GGUF")
    pool = {"name": "small", "model": "small", "source": "file:/models/small.gguf", "modelClaim": "models"}
    objects = render(values={"workers": [pool | {"sha256": "ab" * 32}]})
    with Cluster(tmp_path, objects, claims={"models": claim}) as cluster, pytest.raises(AssertionError) as ended:
        cluster.start("test-worker-small-0")
    assert "pull of test-worker-small-0 ended with 1" in str(ended.value)
    assert "ab" * 32 in str(ended.value), "it names the digest that was expected"


def test_a_router_without_etcd_is_alive_and_says_why_it_is_not_ready(tmp_path):
    with Cluster(tmp_path, render(example="minimal")) as cluster:
        router, _ = cluster.begin("test-router-0")
        until(lambda: get(f"http://{router.ip}:9464/healthz")[0] == 200, router.said)
        status, reason = get(f"http://{router.ip}:9464/readyz")
        assert status == 503 and "no model is served yet" in reason
        until(lambda: "etcd" in router.said(), router.said)
