"""What side-by-side runs share: processes, their memory and processor time, and `penstock bench` as the one load for all."""

import contextlib
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PENSTOCK = ROOT / "target/release/penstock"
LIMIT = 120.0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A process that is ended with the block, and its children with it."""

    def __init__(self, *command, env=None):
        self.command = [str(word) for word in command]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)
        self.started = time.monotonic()
        self.child = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
                                      env={**os.environ, "PENSTOCK_LOG_LEVEL": "warn", **(env or {})})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGTERM)
        try:
            self.child.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()

    def _until(self, ready):
        while time.monotonic() - self.started < LIMIT:
            if self.child.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError):
                if (found := ready()) is not None:
                    return found
            time.sleep(0.02)
        tail = pathlib.Path(self.log.name).read_text()[-2000:]
        raise SystemExit(f"{' '.join(self.command)} does not get ready:\n{tail}")

    def wait_url(self, url):
        """Seconds from the start until `url` answers 200."""

        def ready():
            with urllib.request.urlopen(url, timeout=5) as response:
                return time.monotonic() - self.started if response.status == 200 else None

        return self._until(ready)

    def wait_file(self, path):
        """What the ready file says, once it is there."""
        return self._until(lambda: json.loads(pathlib.Path(path).read_text()))

    def _pids(self):
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    # Its own session: everything that this process started is in it.
                    if int(fields[3]) == self.child.pid:
                        yield entry, fields

    def cpu_seconds(self):
        return sum(int(fields[11]) + int(fields[12]) for _, fields in self._pids()) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self):
        lines = (line for entry, _ in self._pids() for line in (entry / "status").read_text().splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def load(*flags):
    """One run of `penstock bench`: its report."""
    command = [str(PENSTOCK), "bench", "-o", "json", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    if report["ok"] != report["requests"]:
        # Figures are of those that were answered; a server that loses some is told by this line.
        print(f"{' '.join(command[4:])}: {report['ok']} of {report['requests']} answered", flush=True)
    return report


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{os.cpu_count()} × {model}, {platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f}"


def median(values):
    return statistics.median(values)


def table(head, rows):
    """Prints a table in Markdown, to be read here and pasted into RESULTS.md."""
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
