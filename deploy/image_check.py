"""Makes the image's last stage in a clean folder, without a container engine, and runs what it starts.

Reads the Dockerfile itself, so that it checks what stands there: the base by debootstrap, then COPY, ENV, USER and
ENTRYPOINT. What the build stage makes is taken from this machine. Needs root, Debian's apt and some minutes once."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "target/image"
SUITES = {"12": "bookworm", "13": "trixie"}


def stage(name):
    """(instruction, rest) of each line of a stage."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    start = next(index for index, line in enumerate(lines) if line[0] == "FROM" and line[1].endswith(f" AS {name}"))
    end = next((index for index in range(start + 1, len(lines)) if lines[index][0] == "FROM"), len(lines))
    return lines[start:end]


def debootstrap(base):
    """A clean system of the base's suite; made once, copied for each check."""
    suite = SUITES[re.match(r"debian:(\d+)", base)[1]]
    clean = WORK / suite
    if not (clean / ".ready").exists():
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        subprocess.run(
            "apt-get download -qq debootstrap && dpkg -x debootstrap_*.deb tool", cwd=WORK, shell=True, check=True
        )
        env = os.environ | {"DEBOOTSTRAP_DIR": str(WORK / "tool/usr/share/debootstrap")}
        command = [WORK / "tool/usr/sbin/debootstrap", "--variant=minbase", suite, clean]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        (clean / ".ready").touch()
    root = WORK / "root"
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", clean, root], check=True)
    return root


def built(path):
    """What the build stage has at a path, as this machine has it."""
    if path == "/penstock":
        return ROOT / "target/release/penstock"
    if path == "/data":
        return None
    return Path(path)


def make(lines):
    """The root, the environment, the user and the entry point of a stage."""
    root, env, user, entry = debootstrap(lines[0][1]), {"PATH": "/usr/local/bin:/usr/bin:/bin"}, None, None
    for word, rest in lines[1:]:
        if word == "COPY":
            *flags, source, target = rest.split()
            assert "--from=build" in flags, rest
            to, what = root / target.lstrip("/"), built(source)
            if what is None:
                to.mkdir(parents=True)
            else:
                (to if target.endswith("/") else to.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(what, to)
            for flag in flags:
                if flag.startswith("--chown="):
                    os.chown(to, *map(int, flag.removeprefix("--chown=").split(":")))
        elif word == "ENV":
            name, value = rest.split("=", 1)
            env[name] = value
        elif word == "USER":
            user = rest
        elif word == "ENTRYPOINT":
            entry = json.loads(rest)
        elif word != "VOLUME":
            sys.exit(f"image_check: {word} is not known here; teach it, or keep it out of the last stage")
    return root, env, user, entry


def main():
    root, env, user, entry = make(stage("cpu"))

    def run(*words):
        command = [shutil.which("unshare"), "--net", shutil.which("chroot"), f"--userspec={user}", root, *entry, *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"image_check: {' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    print(run("--version"))
    listed = json.loads(run("model", "list", "-o", "json"))
    if listed:
        sys.exit(f"image_check: a clean image has models: {listed}")
    owned = subprocess.run(
        ["chroot", f"--userspec={user}", root, "touch", "/etc/mine"], capture_output=True, check=False
    )
    if owned.returncode == 0:
        sys.exit("image_check: its user may write outside its data")
    base = stage("cpu")[0][1].split()[0]
    print(f"image_check: the stage cpu of {base} starts in a clean system")


if __name__ == "__main__":
    main()
