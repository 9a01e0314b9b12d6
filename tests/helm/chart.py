"""The chart, rendered by a real helm."""

import json
import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/penstock"
TOOLS = ROOT / "target/helm-tools"
HELM = TOOLS / "helm"
EXAMPLES = sorted(path.stem.removeprefix("values-") for path in CHART.glob("values-*.yaml"))


class Refused(Exception):
    """helm did not take the values; its message says why."""


def helm(*args, values=None):
    """Runs helm with further values and returns what it prints."""
    command = [str(HELM), *args]
    if values is not None:
        command += ["--values", "-"]
    text = None if values is None else json.dumps(values)
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=os.environ | {"HOME": str(TOOLS)})
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(*settings, values=None, example=None, name="test", namespace="space"):
    """The objects that `helm template` makes of an example, of further values, and of `key=value` settings."""
    files = ["--values", str(CHART / f"values-{example}.yaml")] if example else []
    sets = [word for setting in settings for word in ("--set", setting)]
    text = helm("template", name, str(CHART), "--namespace", namespace, *files, *sets, values=values)
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def of(objects, kind, name=None):
    """The objects of a kind; with a name, the one."""
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    if name is None:
        return found
    [only] = found
    return only


def pod_specs(objects):
    """(object, pod's spec) of everything that makes pods."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each, each["spec"]
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each, each["spec"]["template"]["spec"]


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def selects(selector, labels):
    """Whether a selector's labels are all among these."""
    return selector.items() <= labels.items()
