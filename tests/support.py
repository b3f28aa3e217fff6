"""Real processes for the tests: the simulator, the daemon, pictures."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageDraw

HOME = Path(__file__).resolve().parents[1]
#: Longest wait for anything, in seconds; far more than any of it takes.
PATIENCE = 120.0
_LABELS = ("ADC", "DAC", "PLL", "MCU", "DSP", "RAM", "ROM", "BUS", "DMA", "USB", "LCD", "OSC")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Until the condition holds; its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def draw(path: Path, seed: int) -> Path:
    """A small picture that no other seed gives."""
    image = Image.new("RGB", (96, 64), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle([6, 20, 34, 44], outline="black")
    pen.rectangle([62, 20, 90, 44], outline="black")
    pen.line([34, 32, 62, 32], fill="black")
    pen.text((8, 26), str(seed), fill="black")
    for bit in range(24):
        if seed >> bit & 1:
            pen.point((2 + 3 * bit, 60), fill="black")
    image.save(path)
    return path


def make_diagram(path: Path, seed: int, size: tuple[int, int] = (224, 168)) -> Path:
    """A small block diagram that no other seed gives; the suffix says the format."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    centres = []
    for place, label in zip(rng.sample(range(6), 4), rng.sample(_LABELS, 4), strict=True):
        x = 8 + place % 3 * (size[0] // 3) + rng.randint(0, 8)
        y = 8 + place // 3 * (size[1] // 2) + rng.randint(0, 24)
        pen.rectangle((x, y, x + 52, y + 26), outline="black", width=2)
        pen.text((x + 12, y + 7), label, fill="black")
        centres.append((x + 26, y + 13))
    pen.line(centres, fill="black")
    for bit in range(32):
        if seed >> bit & 1:
            pen.point((bit, size[1] - 1), fill="black")
    image.save(path)
    return path


def data_url(data: bytes, mime: str = "image/png") -> str:
    """A picture as requests carry it."""
    return f"data:{mime};base64," + base64.b64encode(data).decode()


class Simulator:
    """`python -m rsd.simulator` as a process of its own."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._ports = ("0", "0")
        self.start()

    def start(self) -> None:
        """On the same ports as before, if there was a before."""
        self.process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "rsd.simulator", "--port", self._ports[0]),
                *("--grader-port", self._ports[1], *self._options),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=HOME,
        )
        assert self.process.stdout is not None
        urls = json.loads(self.process.stdout.readline())
        self.generator, self.grader = urls["generator"], urls["grader"]
        self.generator_url: str = self.generator
        self.grader_url: str = self.grader
        self._ports = tuple(u.rpartition(":")[2].partition("/")[0] for u in urls_of(urls))  # type: ignore[assignment]

    def stop(self) -> None:
        """End it, as an outage would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """SIGKILL: connections break, the ports are free. Harmless when it is gone."""
        self.stop()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=PATIENCE)
        self.stop()
        return code

    def restart(self) -> None:
        """Again on the same ports, with the same options and counters at zero."""
        self.stop()
        self.start()

    def _root(self) -> str:
        return self.generator.removesuffix("/v1")

    def fault(self, role: str, kind: str, **fields: Any) -> None:
        """From now on."""
        answer = requests.post(
            f"{self._root()}/simulator/faults",
            json={"role": role, "kind": kind, **fields},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text

    def clear(self) -> None:
        """No faults any more."""
        requests.delete(f"{self._root()}/simulator/faults", timeout=10)

    def stats(self, role: str = "", *, detail: bool = False) -> dict[str, Any]:
        """What was seen: of one role, or of both by their names."""
        query = "?detail=1" if detail else ""
        data: dict[str, Any] = requests.get(
            f"{self._root()}/simulator/stats{query}", timeout=10
        ).json()
        return data[role] if role else data

    def struck(self) -> dict[str, int]:
        """How often faults struck, by `role:kind`."""
        found: dict[str, int] = self.stats()["faults"]
        return found

    def settings(self, role: str, **fields: Any) -> None:
        """Change `slots` or `seconds` of a role while it runs."""
        answer = requests.post(
            f"{self._root()}/simulator/settings", json={"role": role, **fields}, timeout=10
        )
        assert answer.status_code == 200, answer.text

    def reset(self) -> None:
        """Count from zero."""
        requests.post(f"{self._root()}/simulator/reset", timeout=10)


def urls_of(urls: dict[str, Any]) -> tuple[str, str]:
    return urls["generator"], urls["grader"]


@contextmanager
def simulator(*options: str) -> Iterator[Simulator]:
    """A simulator for a block."""
    running = Simulator(*options)
    try:
        yield running
    finally:
        running.stop()


class Daemon:
    """`daemon.py` in a folder of its own."""

    def __init__(self, folder: Path, sim: Simulator | None, *flags: str, **settings: str) -> None:
        self.images, self.output = folder / "images", folder / "output"
        self.images.mkdir(exist_ok=True)
        self._flags = flags
        self._sim = sim
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("RSD_")}
        self._env |= {
            "RSD_RUNTIME_DIR": str(folder / "run"),
            "RSD_WATCH_SETTLE_SECONDS": "0.2",
            "RSD_WATCH_RESCAN_SECONDS": "5",
            "RSD_ERRORS_PROBE_SECONDS": "0.3",
            "RSD_ERRORS_BACKOFF_SECONDS": "0.2",
            "RSD_ERRORS_BACKOFF_MAX_SECONDS": "1",
            "RSD_ERRORS_QUOTA_PROBE_SECONDS": "1",
            "RSD_THROTTLE_ENABLED": "false",
            "RSD_SAMPLING_STRATEGY": "random",  # most tests count candidates and grades
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self._env |= settings
        self._log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        """The command line."""
        urls = []
        if self._sim is not None:
            urls = ["--vllm-api", self._sim.generator, "--grading-api", self._sim.grader]
        folders = ["--image-dir", str(self.images), "--output-dir", str(self.output)]
        return [sys.executable, str(HOME / "daemon.py"), *words, *folders, *urls, *self._flags]

    def once(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`run --once` to its end."""
        return subprocess.run(
            self.command("run", "--once", *words),
            cwd=HOME,
            env=self._env | env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def start(self, *words: str, **env: str) -> subprocess.Popen[bytes]:
        """`run`, in the background."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("run", *words),
                cwd=HOME,
                env=self._env | env,
                stderr=log,
                stdout=log,
                process_group=0,  # so that a test can do what Ctrl-C in a terminal does
            )
        return self.process

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)

    def log(self) -> str:
        """What it said."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command on its state."""
        return subprocess.run(
            [sys.executable, str(HOME / "daemon.py"), *words, "--output-dir", str(self.output)],
            cwd=HOME,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """`status --json`; {} while there is nothing to read yet."""
        done = self.run("status", "--json")
        if done.returncode == 4:
            return {}
        data: dict[str, Any] = json.loads(done.stdout)
        return data

    def live(self) -> dict[str, Any]:
        """What the present hub wrote last into live.json; {} before."""
        try:
            document: dict[str, Any] = json.loads((self.output / "state/live.json").read_bytes())
        except (OSError, ValueError):
            return {}
        mine = self.process is not None and document["pid"] == self.process.pid
        return document if mine else {}

    def status_live(self, name: str, section: str = "candidates") -> int:
        """A count of live.json; -1 before there is one."""
        return int(self.live().get(section, {}).get(name, -1))

    def settled(self, seen: int) -> dict[str, Any] | None:
        """The status, once so many paths are seen, none is open and all files are there."""
        try:
            document: dict[str, Any] = json.loads((self.output / "state/live.json").read_bytes())
        except (OSError, ValueError):
            return None
        images = document["images"]
        if self.process is not None and document["pid"] != self.process.pid:
            return None  # a word of the hub before
        if images["seen"] < seen or images["queued"] or images["active"]:
            return None
        folders = ("high_quality", "low_quality", "failed")
        files = sum(len(list((self.output / f).glob("*.json"))) for f in folders)
        return document if files == sum(images[f] for f in folders) else None

    def results(self) -> dict[str, dict[str, Any]]:
        """Result documents by file name of the image."""
        found: dict[str, dict[str, Any]] = {}
        for folder in ("high_quality", "low_quality"):
            for path in (self.output / folder).glob("*.json"):
                document = json.loads(path.read_text())
                name = document["image_info"]["filename"]
                assert name not in found, f"two results for {name}"
                document["folder"] = folder
                found[name] = document
        return found

    def failures(self) -> dict[str, str]:
        """Reasons in failed/ by file name of the image."""
        documents = [
            json.loads(path.read_text()) for path in (self.output / "failed").glob("*.json")
        ]
        return {d["image_info"]["filename"]: d["reason"] for d in documents}

    def children(self) -> dict[str, int]:
        """Name to pid of the living children, as /proc knows them."""
        assert self.process is not None
        found: dict[str, int] = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                found[pid] = int(pid)
        return found

    def family(self) -> list[int]:
        """The pids of all its living children, whatever they are."""
        assert self.process is not None
        try:
            tasks = list(Path(f"/proc/{self.process.pid}/task").iterdir())
            return [int(p) for task in tasks for p in (task / "children").read_text().split()]
        except OSError:
            return []


def living(pids: Iterable[int]) -> list[int]:
    """Those of the processes that are there and no zombies."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def undisturbed(folder: Path, images: Mapping[str, int], *flags: str) -> dict[str, Any]:
    """What a run that nobody disturbs makes of pictures, by name and seed."""
    with simulator() as sim:
        d = Daemon(folder, sim, *flags)
        fill(d, images)
        assert d.once().returncode == 0
        return essence(d.results())


def fill(d: Daemon, images: Mapping[str, int]) -> None:
    """Draw them for a daemon."""
    for name, seed in images.items():
        draw(d.images / name, seed)


def essence(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What must be the same however often the run was disturbed."""
    return {
        name: (
            document["folder"],
            document["best_result"]["index"],
            document["best_result"]["score"],
            [
                (
                    c["index"],
                    c["prompt_key"],
                    tuple(sorted(c["params"].items())),
                    c["content"],
                    c["finish_reason"],
                    tuple(g["score"] for g in c["grades"]),
                )
                for c in document["all_candidates"]
            ],
        )
        for name, document in results.items()
    }
