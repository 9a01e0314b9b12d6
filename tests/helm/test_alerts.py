"""The alerts: each fires when it should and not otherwise, and says what to do."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from chart import CHART, ROOT, TOOLS, of, render

FILE = CHART / "alerts/penstock.yaml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
CASES = Path(__file__).with_name("alerts.test.yaml")


def promtool(*args):
    done = subprocess.run([TOOLS / "promtool", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_rules(tmp_path):
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "--lint-fatal", str(FILE))
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(yaml.safe_dump(of(render(example="startup"), "PrometheusRule", "test-alerts")["spec"]))
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "--lint-fatal", str(rendered))


def test_each_fires_and_does_not(tmp_path):
    bare = [{key: rule[key] for key in rule if key != "annotations"} for rule in RULES]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "penstock", "rules": bare}]}))
    (tmp_path / "cases.yaml").write_text(CASES.read_text())
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "cases.yaml"))
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    for rule in RULES:
        outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]}
        assert outcomes == {True, False}, f"{rule['alert']} has no case where it fires, or none where it does not"


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_each_says_what_to_do(rule):
    path, anchor = rule["annotations"]["runbook"].split("#")
    sections = re.split(r"^#+ ", (ROOT / path).read_text(), flags=re.MULTILINE)
    [section] = [text for text in sections if text.partition("\n")[0].strip().lower() == anchor]
    assert len(section.split()) > 20, "it says what to do"
    assert anchor == rule["alert"].lower()
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_every_selector_can_be_narrowed_to_a_release():
    for rule in RULES:
        selectors = re.findall(r"\b((?:penstock|etcd)_\w+)(\{[^}]*\})?", rule["expr"])
        assert selectors
        assert all('release=~".*"' in labels for _, labels in selectors), rule["alert"]
