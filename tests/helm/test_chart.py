"""The chart: what helm makes of values, and what Kubernetes would say to it."""

import functools
import json
import random
import re
import shutil
import subprocess

import kubernetes_validate.utils
import pytest
import yaml
from chart import CHART, EXAMPLES, HELM, ROOT, TOOLS, Refused, containers, helm, of, pod_specs, render, selects
from draw import Drawer

VERSIONS = [f"1.{minor}" for minor in range(29, 36)]
OF_OTHERS = re.compile(r"^(cert-manager\.io|gateway\.networking\.k8s\.io|keda\.sh|monitoring\.coreos\.com)/")
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DRAWN = 20

# Reads each of its files once.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


@functools.cache
def drawn(seed):
    return render(values=Drawer(SCHEMA, random.Random(seed)).values())


def check(objects):
    """Every object is valid: Kubernetes' own for each version, the others by their projects' schemas."""
    others = [each for each in objects if OF_OTHERS.match(each["apiVersion"])]
    for each in objects:
        if each not in others:
            for version in VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)
    node = ROOT / ".venv/bin/node"
    done = subprocess.run(
        [node, "schemas.mjs"], cwd=TOOLS, input=json.dumps(others), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for _, name in names)


def keeps_policy(objects):
    """What every pod keeps to, whatever the values are."""
    for owner, spec in pod_specs(objects):
        at = f"{owner['kind']} {owner['metadata']['name']}"
        assert spec["automountServiceAccountToken"] is False, at
        assert spec["securityContext"]["runAsNonRoot"] is True, at
        assert spec["securityContext"]["runAsUser"] > 0, at
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, at
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), at
        for container in containers(spec):
            here = f"{at}: {container['name']}"
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, here
            assert security["allowPrivilegeEscalation"] is False, here
            assert security["capabilities"] == {"drop": ["ALL"]}, here
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert limits["cpu"] and limits["memory"] and requests["cpu"] and requests["memory"], here
            image = container["image"]
            assert "@sha256:" in image or re.search(r":(?!latest$)[^:/]+$", image), f"{here}: {image}"
            for variable in container.get("env", []):
                assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", variable["name"]) or "valueFrom" in variable, here
        if owner["kind"] in ("Deployment", "StatefulSet"):
            for container in spec["containers"]:
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    assert "httpGet" in container[probe], f"{owner['metadata']['name']}: {probe}"
    assert not of(objects, "Secret"), "a chart that takes secrets by reference makes none"
    assert not [each for each in objects if "Role" in each["kind"]], "nothing here calls the API server"


def connected(objects):
    """Every selector selects pods, and every reference inside the release is to something that is there."""
    labels = [
        (each["spec"]["template"]["metadata"] if each["kind"] != "Pod" else each["metadata"])["labels"]
        for each, _ in pod_specs(objects)
    ]
    for each in objects:
        spec = each.get("spec", {})
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] in ("Service", "PodDisruptionBudget"):
            selector = spec["selector"].get("matchLabels", spec["selector"])
            assert any(selects(selector, has) for has in labels), name
        if each["kind"] == "StatefulSet":
            of(objects, "Service", spec["serviceName"])
        if each["kind"] == "HorizontalPodAutoscaler" or each["kind"] == "ScaledObject":
            target = spec["scaleTargetRef"]
            assert "replicas" not in of(objects, target["kind"], target["name"])["spec"], name
    for _, spec in pod_specs(objects):
        mounted = {mount["name"] for container in containers(spec) for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        assert mounted - volumes <= {"cache", "data"}, "only claims of a StatefulSet are no volumes of its pods"


@pytest.mark.parametrize("example", [None, *EXAMPLES])
def test_examples_are_valid(example):
    files = ["--values", str(CHART / f"values-{example}.yaml")] if example else []
    helm("lint", "--strict", str(CHART), *files)
    objects = render(example=example)
    check(objects)
    keeps_policy(objects)
    connected(objects)


@pytest.mark.parametrize("seed", range(DRAWN))
def test_drawn_values_are_valid(seed):
    objects = drawn(seed)
    check(objects)
    keeps_policy(objects)
    connected(objects)


def test_drawn_values_reach_every_template():
    kinds = set()
    for seed in range(DRAWN):
        kinds |= {each["kind"] for each in drawn(seed)}
    for example in EXAMPLES:
        kinds |= {each["kind"] for each in render(example=example)}
    assert kinds >= {
        *("Deployment", "StatefulSet", "Service", "ServiceAccount", "Job", "ConfigMap", "Pod", "PodDisruptionBudget"),
        *("HorizontalPodAutoscaler", "ScaledObject", "NetworkPolicy", "Ingress", "HTTPRoute", "GRPCRoute"),
        *("Certificate", "ServiceMonitor", "PodMonitor", "PrometheusRule"),
    }


def test_the_schema_is_complete():
    """It knows exactly the keys of values.yaml, and no object of it takes unknown ones."""

    def resolve(schema):
        return SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema

    def walk(schema, value, at):
        schema = resolve(schema)
        if schema.get("type") == "object" and at != ".global":
            assert "additionalProperties" in schema, at
            if isinstance(value, dict) and "properties" in schema:
                assert schema["additionalProperties"] is False, at
                missing = set(schema["properties"]) - set(value)
                assert missing <= {"global", "ephemeral-storage"}, f"{at}: not in values.yaml: {missing}"
                for key, inner in schema["properties"].items():
                    walk(inner, value.get(key), f"{at}.{key}")

    def closed(schema, at):
        if isinstance(schema, dict):
            if schema.get("type") == "object" and not at.endswith("properties.global"):
                assert "additionalProperties" in schema, at
            for key, inner in schema.items():
                closed(inner, f"{at}.{key}")
        elif isinstance(schema, list):
            for index, inner in enumerate(schema):
                closed(inner, f"{at}[{index}]")

    walk(SCHEMA, yaml.safe_load((CHART / "values.yaml").read_text()), "")
    closed(SCHEMA, "")


@pytest.mark.parametrize(
    "setting, says",
    [
        ("router.replica=3", ["router", "replica"]),
        ("router.replicas=0", ["router.replicas", "1"]),
        ("router.replicas=two", ["router.replicas", "integer"]),
        ("router.balance=fair", ["router.balance", "p2c", "least-load"]),
        ("image.tag=latest", ["image.tag", "latest", "version"]),
        ("etcd.internal.image.tag=", ["etcd.internal.image.tag"]),
        ("etcd.internal.replicas=2", ["etcd.internal.replicas", "1, 3, 5"]),
        ("etcd.mode=external", ["etcd.external.endpoints"]),
        ("tls.mode=certManager", ["tls.issuer.name"]),
        ("tls.mode=secrets", ["tls.secrets.router"]),
        ("workers[0].model=", ["workers.0.model"]),
        ("workers[0].gpu=1", ["workers.0", "gpu"]),
        ("workers[0].source=pypi:a==1/b.gguf", ["workers.0.source", "hf:"]),
        ("workers[1].name=b,workers[1].model=b", ["workers[1] (b)", "source is missing", "scripted"]),
        ("workers[0].source=file:/models/a.gguf", ["workers[0] (small)", "modelClaim"]),
        ("workers[0].device=cuda:0", ["workers[0] (small)", "gpus"]),
        ("workers[0].tensorParallel=2", ["workers[0] (small)", "tensorParallel 2", "gpus"]),
        ("workerDefaults.autoscaling.enabled=true,workerDefaults.autoscaling.minReplicas=9", ["workers[0]", "9", "4"]),
        ("workers[1].name=small,workers[1].model=m,workers[1].runner=scripted", ["workers[1] (small)", "another pool"]),
        ("catalogue.enabled=true,catalogue.inline=x", ["secrets.adminKey"]),
        ("catalogue.enabled=true,secrets.adminKey.secret=a", ["catalogue"]),
        ("secrets.adminKey=abc", ["secrets.adminKey", "object"]),
        ("router.env.ACME_API_KEY=abc", ["router.env", "ACME_API_KEY"]),
        ("gateway.ingress.enabled=true", ["gateway.ingress.host"]),
        ("ledger.enabled=true", ["ledger.url.secret"]),
    ],
)
def test_wrong_values_are_refused_by_name(setting, says):
    with pytest.raises(Refused) as refused:
        render(setting, example="minimal")
    for word in says:
        assert word in str(refused.value), str(refused.value)


def test_replicas_and_models_are_what_they_say():
    objects = render("router.replicas=5", "workers[0].replicas=4", "workers[0].model=tiny", example="minimal")
    assert of(objects, "Deployment", "test-router")["spec"]["replicas"] == 5
    pool = of(objects, "StatefulSet", "test-worker-small")["spec"]
    assert pool["replicas"] == 4
    args = pool["template"]["spec"]["containers"][0]["args"]
    [model] = [arg for arg in args if arg.startswith("--model=")]
    assert model.startswith("--model=tiny=hf:")
    assert '"model":"tiny"' in " ".join(of(objects, "Pod", "test-test")["spec"]["containers"][0]["args"])
    empty = render("workers[0].replicas=0", example="minimal")
    assert of(empty, "StatefulSet", "test-worker-small")["spec"]["replicas"] == 0


def test_monitoring_and_network_policies_come_when_asked():
    kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    off = {each["kind"] for each in render("monitoring.enabled=false", example="startup")}
    on = render("monitoring.enabled=true", example="startup")
    assert not kinds & off
    assert kinds <= {each["kind"] for each in on}
    assert len([each for each in of(on, "ConfigMap") if "dashboard" in each["metadata"]["name"]]) == 4
    assert not of(render("networkPolicy.enabled=false", example="startup"), "NetworkPolicy")
    assert len(of(render("networkPolicy.enabled=true", example="startup"), "NetworkPolicy")) == 4


def test_only_routers_reach_workers():
    objects = render(example="startup")
    ingress = of(objects, "NetworkPolicy", "test-worker")["spec"]["ingress"]
    [grpc] = [rule for rule in ingress if {"port": 50061, "protocol": "TCP"} in rule["ports"]]
    router = of(objects, "Deployment", "test-router")["spec"]["selector"]["matchLabels"]
    assert grpc["from"] == [{"podSelector": {"matchLabels": router}}]
    assert all(rule.get("from") for rule in ingress), "a rule without `from` is open to everybody"


def test_routers_reach_the_hosts_of_the_values_and_no_others():
    hosts = [{"cidr": "203.0.113.0/24", "ports": [443]}]
    objects = render(values={"networkPolicy": {"enabled": True, "egress": {"router": hosts}}})
    egress = of(objects, "NetworkPolicy", "test-router")["spec"]["egress"]
    blocks = [to["ipBlock"]["cidr"] for rule in egress for to in rule.get("to", []) if "ipBlock" in to]
    assert blocks == ["203.0.113.0/24"]
    beyond = [to for rule in egress for to in rule["to"] if "namespaceSelector" in to]
    assert beyond == [{"namespaceSelector": {}}], "only DNS leaves the namespace"
    [dns] = [rule for rule in egress if {"namespaceSelector": {}} in rule["to"]]
    assert {port["port"] for port in dns["ports"]} == {53}


@pytest.mark.parametrize("deadline", [30, 900])
def test_pods_get_as_long_to_end_as_the_longest_request_may_take(deadline):
    objects = render(f"router.deadlineSeconds={deadline}", example="minimal")
    for name, kind in [("test-router", "Deployment"), ("test-worker-small", "StatefulSet")]:
        spec = of(objects, kind, name)["spec"]["template"]["spec"]
        [container] = spec["containers"]
        assert f"--grace={deadline}s" in container["args"]
        pause = int(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0, 0])[1])
        assert spec["terminationGracePeriodSeconds"] > deadline + pause


def test_a_startup_probe_lasts_as_long_as_loading_may_take():
    objects = render("workers[0].startupSeconds=4001", example="minimal")
    probe = of(objects, "StatefulSet", "test-worker-small")["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 4001


def test_a_pool_of_gpus_asks_for_them():
    settings = ["device=cuda:0", "gpus=2", "tensorParallel=2", "runtimeClass=nvidia"]
    settings = [f"workers[0].{setting}" for setting in settings]
    spec = of(render(*settings, example="minimal"), "StatefulSet", "test-worker-small")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {"--device=cuda:0", "--tensor-parallel=2"} <= set(container["args"])
    assert spec["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize("kind", ["pvc", "hostPath", "emptyDir"])
def test_a_cache_is_of_its_kind(kind):
    pool = of(render(f"workers[0].cache.type={kind}", example="minimal"), "StatefulSet", "test-worker-small")["spec"]
    volumes = {volume["name"]: volume for volume in pool["template"]["spec"]["volumes"]}
    claims = [claim["metadata"]["name"] for claim in pool.get("volumeClaimTemplates", [])]
    assert ("cache" in claims) == (kind == "pvc")
    assert kind == "pvc" or kind in volumes["cache"]


def test_two_releases_in_a_namespace_share_no_name_and_no_pod():
    long = "a-release-whose-name-is-as-long-as-helm-allows-it"
    releases = [render(example="startup", name=name) for name in ("blue", "green", f"{long}-one", f"{long}-two")]
    names = [{(each["kind"], each["metadata"]["name"]) for each in objects} for objects in releases]
    for index, mine in enumerate(names):
        for others in names[index + 1 :]:
            assert not mine & others
    for objects in releases:
        others = [each for release in releases if release is not objects for each in release]
        labels = [each["spec"]["template"]["metadata"]["labels"] for each in others if each["kind"] == "StatefulSet"]
        for service in of(objects, "Service"):
            assert not any(selects(service["spec"]["selector"], has) for has in labels)
    for objects in releases:
        for each in of(objects, "StatefulSet"):
            assert len(each["metadata"]["name"]) <= 52, "its pods carry a label with a digest behind the name"


def test_a_pool_may_set_what_is_zero_or_empty_over_the_defaults():
    values = {
        "workerDefaults": {"gpus": 1, "runtimeClass": "nvidia", "autoscaling": {"enabled": True}},
        "workers": [
            {
                **{"name": "a", "model": "a", "runner": "scripted"},
                **{"gpus": 0, "runtimeClass": "", "autoscaling": {"enabled": False}, "replicas": 0},
            }
        ],
    }
    objects = render(values=values)
    pool = of(objects, "StatefulSet", "test-worker-a")["spec"]
    assert pool["replicas"] == 0
    assert "nvidia.com/gpu" not in pool["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "runtimeClassName" not in pool["template"]["spec"]
    assert not of(objects, "ScaledObject")


def test_the_catalogue_is_checked_and_applied_once_the_release_is_there():
    catalogue = "routes:\n  - name: assistant\n"
    values = {
        "catalogue": {"enabled": True, "inline": catalogue},
        "secrets": {"adminKey": {"secret": "admin"}},
    }
    objects = render(values=values)
    job = of(objects, "Job", "test-catalogue")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade,post-rollback"
    spec = job["spec"]["template"]["spec"]
    [check], [apply] = spec["initContainers"], spec["containers"]
    assert check["args"] == ["apply", "--dry-run", *apply["args"][1:]]
    assert "--server=test-admin.space.svc:8081" in apply["args"]
    given = of(objects, "ConfigMap", "test-catalogue")["data"]["catalogue.yaml"]
    assert yaml.safe_load(given) == yaml.safe_load(catalogue)
    assert not of(render(), "Job")


def test_flags_that_come_later_are_given_only_where_values_ask():
    later = {"--name", "--no-egress", "--max-stale", "--config", "--secrets-dir", "--secret-env"}
    later |= {"--ledger-url", "--ledger-key"}

    def flags(**values):
        [container] = of(render(values=values), "Deployment", "test-router")["spec"]["template"]["spec"]["containers"]
        return {arg.split("=")[0] for arg in container["args"]}

    assert not later & flags()
    env = {"name": "ACME_API_KEY", "secret": "upstreams", "key": "acme"}
    everything = flags(
        router={"name": True, "noEgress": True, "maxStale": "24h"},
        catalogue={"enabled": True, "configMap": "mine", "atStart": True},
        secrets={"adminKey": {"secret": "admin"}, "files": ["upstreams"], "env": [env]},
        ledger={"enabled": True, "url": {"secret": "a"}, "key": {"secret": "b"}},
    )
    assert later <= everything


@pytest.mark.parametrize("example", [None, *EXAMPLES])
def test_notes_say_what_there_is_and_what_is_open(example, tmp_path):
    """`helm template` keeps notes for itself, so a copy of the chart puts them into an object."""
    copy = shutil.copytree(CHART, tmp_path / "penstock")
    include = '{{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}'
    (copy / "templates/notes.yaml").write_text(f"kind: Notes\nmetadata: {{name: notes}}\ndata: {include}\n")
    files = ["--values", str(CHART / f"values-{example}.yaml")] if example else []
    text = helm("template", "mine", str(copy), "--namespace", "space", *files)
    notes = of([each for each in yaml.safe_load_all(text) if each], "Notes", "notes")["data"]
    secure = example == "bank"
    assert f"http{'s' if secure else ''}://mine-router.space.svc:8080/v1" in notes
    assert ("Plaintext" in notes) != secure
    assert ("No pool of workers" in notes) == (example is None)
    assert ("etcd keeps nothing" in notes) == (example == "minimal")


def test_helm_is_real():
    version = subprocess.run([HELM, "version", "--short"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("v3.")
