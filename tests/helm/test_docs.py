"""What the documents say is so: tests that they name are there, values that they show are taken."""

import re
import shlex

import pytest
import yaml
from chart import CHART, EXAMPLES, ROOT, helm, of, render

SECURITY = (ROOT / "docs/security.md").read_text()
KUBERNETES = (ROOT / "docs/kubernetes.md").read_text()


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`([\w/.-]+::\w+)`", SECURITY))))
def test_a_test_that_is_named_is_there(test):
    path, name = test.split("::")
    assert re.search(rf"\b(?:fn|def) {name}\b", (ROOT / path).read_text())


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", KUBERNETES, re.DOTALL))
def test_values_that_are_shown_are_taken(block):
    values = yaml.safe_load(block)
    assert of(render(example="minimal", values=values), "Deployment")


def test_the_command_that_installs_renders():
    [line] = re.findall(r"^helm install .*$", KUBERNETES, re.MULTILINE)
    words = shlex.split(line.replace("REGISTRY", "registry.example").replace(" helm/penstock", f" {CHART}"))[2:]
    words = [word for word in words if word != "--create-namespace"]
    files = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
    assert "registry.example/penstock:" in helm("template", *files)
    assert all(f"values-{example}.yaml" in (CHART / "values.yaml").read_text() for example in EXAMPLES)
