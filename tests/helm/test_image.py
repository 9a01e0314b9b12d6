"""The image's Dockerfile and the compose file: pinned, nobody's user, and the same files that the chart brings."""

import json
import re
import subprocess

import pytest
import yaml
from chart import CHART, ROOT, TOOLS

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_linter_has_nothing_to_say():
    command = [ROOT / ".venv/bin/hadolint", "--failure-threshold", "style", "--format", "json", DEPLOY / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_bases_are_pinned_and_the_user_is_nobodys():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)
    outside = [base for base in bases if base not in stages]
    assert outside and all(re.search(r":\d+\.\d+", base) for base in outside), outside
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] == "65532:65532"
    assert "cpu" in stages


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_pinned_and_reached_from_this_machine_alone(name):
    service = COMPOSE["services"][name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if not service.get("build"):
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
    else:
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]


def test_compose_has_the_cluster_and_looks_at_it():
    services = COMPOSE["services"]
    assert {"etcd", "router1", "router2", "worker1", "worker2", "prometheus", "grafana"} == set(services)
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    static = [each for job in scraped["scrape_configs"] for each in job["static_configs"]]
    lookers = {"prometheus", "grafana"}
    assert {target.split(":")[0] for each in static for target in each["targets"]} == set(services) - lookers
    mounted = [volume.split(":")[0] for name in sorted(lookers) for volume in services[name]["volumes"]]
    for path in mounted:
        if path.startswith("."):
            assert (DEPLOY / path).exists(), path
    sources = [(DEPLOY / path).resolve() for path in mounted if path.startswith(".")]
    assert CHART / "dashboards" in sources and CHART / "alerts" in sources


def test_the_scrape_configuration_is_one(tmp_path):
    for path in [DEPLOY / "prometheus.yml", *(CHART / "alerts").iterdir()]:
        to = tmp_path / ("alerts" if path.parent.name == "alerts" else "") / path.name
        to.parent.mkdir(exist_ok=True)
        to.write_text(path.read_text())
    checked = [TOOLS / "promtool", "check", "config", tmp_path / "prometheus.yml"]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 rule files found" in done.stdout, done.stdout + done.stderr


def test_every_dashboard_is_one():
    boards = [json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))]
    assert len({board["uid"] for board in boards}) == len(boards) == 4
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in board["panels"]:
            assert panel["title"] and panel["description"], f"{board['title']}: a panel says what it shows"
            for target in panel["targets"]:
                names = re.findall(r"\b(?:penstock|etcd)_\w+(\{[^}]*\})?", target["expr"])
                assert names and all('release=~"$release"' in labels for labels in names), target["expr"]
