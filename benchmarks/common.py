"""What the benchmarks share: the servers, the clients, and the figures of a run.

A client is a process of its own (rsd with all its children); its CPU time and the bytes that it
wrote are what the kernel says when it is reaped, children included. Busy slots are counted by the
simulator, which runs on the same machine as the client: ratios within one run are what counts.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
#: The checkout of the client `before`: another version of rsd, run in turn with this one.
BEFORE = os.environ.get("RSD_BENCH_BEFORE", "")
sys.path.insert(0, str(HOME))

import tables  # noqa: E402

from rsd.protocol.vocabulary import seed_base  # noqa: E402

PARAMS = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 2048,
}
#: Share of a run at either end that does not count for the busy slots.
EDGE = 0.1
_TICK = os.sysconf("SC_CLK_TCK")

# ------------------------------------------------------------------------------------ simulator


class Simulator:
    """`python -m rsd.simulator` as a process of its own, or the servers of `fast_server.py`."""

    program: tuple[str, ...] = ("-m", "rsd.simulator", "--no-image-decode")

    def __init__(self, *options: str) -> None:
        self.options = options
        self.ports = ("0", "0")
        self.start()

    def start(self) -> None:
        """On the same ports as before, if there was a before."""
        ports = ("--port", self.ports[0], "--grader-port", self.ports[1])
        self.process = subprocess.Popen(
            [sys.executable, *self.program, *ports, *self.options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=HOME,
        )
        assert self.process.stdout is not None
        urls = json.loads(self.process.stdout.readline())
        self.generator: str = urls["generator"]
        self.grader: str = urls["grader"]
        self.root = self.generator.removesuffix("/v1")
        ports = [u.rpartition(":")[2].partition("/")[0] for u in (self.generator, self.grader)]
        self.ports = (ports[0], ports[1])

    def stop(self) -> None:
        """End it, as an outage would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST with a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.root}/simulator/{path}", data=data)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.loads(answer.read())

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICK


class Places(Simulator):
    """The servers of `fast_server.py`."""

    program = (str(HOME / "benchmarks/fast_server.py"),)


@contextlib.contextmanager
def simulator(*options: str, kind: type[Simulator] = Simulator) -> Iterator[Simulator]:
    """Servers for a block."""
    running = kind(*options)
    try:
        yield running
    finally:
        running.stop()


# --------------------------------------------------------------------------------------- clients


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done, the same for every client."""

    images: tuple[Path, ...]
    candidates: int = 8  #: of an image
    n: int = 1  #: answers of one generation request
    gen_workers: int = 64  #: generation requests in flight
    grade_workers: int = 64
    listwise: bool = False

    @property
    def total(self) -> int:
        """Candidates of all images."""
        return len(self.images) * self.candidates


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one client did."""

    seconds: float  #: whole life of the process
    served: float  #: from the first picture at a server to the last answer, by the simulator
    busy: dict[str, float]  #: share of busy slots in the middle of that time, by pool
    ideal: float  #: seconds that the best possible schedule takes: work of the limiting pool/slots
    cpu: float  #: seconds, user and system, all processes
    written: int  #: bytes, as the kernel accounts them when pages become dirty
    reached: int  #: bytes that reached the device until all was there, of whomsoever
    requests: int
    strangers: float  #: cores that others used meanwhile
    repeated: int  #: calls that were made twice
    strings: int  #: distinct byte strings of pictures


def grading_file(listwise: bool) -> Path:
    """The project's own rubric."""
    name = "grading_prompt_listwise.json" if listwise else "grading_prompt.json"
    return HOME / "prompts" / name


def prompt() -> str:
    """The first of the project's own prompts."""
    prompts = json.loads((HOME / "prompts/generation_prompts.json").read_text())
    return str(next(iter(prompts.values())))


def job(folder: Path, sim: Simulator, work: Work, *, spliced: bool) -> Path:
    """What a script reads; the seeds are those that rsd draws with, so that the simulator takes
    the same time for each answer.
    """
    images = [
        {
            "path": str(path),
            "seed": seed_base(0, hashlib.sha256(path.read_bytes()).hexdigest()),
        }
        for path in work.images
    ]
    file = folder / "job.json"
    file.write_text(
        json.dumps(
            {
                "generator": sim.generator,
                "grader": sim.grader,
                "model": "simulated-vlm",
                "grading_model": "o4-mini",
                "images": images,
                "prompt": prompt(),
                "template": json.loads(grading_file(work.listwise).read_text())["template"],
                "params": PARAMS,
                "candidates": work.candidates,
                "n": work.n,
                "gen_workers": work.gen_workers,
                "grade_workers": work.grade_workers,
                "listwise": work.listwise,
                "spliced": spliced,
                "output": str(folder / "results.jsonl"),
            }
        )
    )
    return file


def clean_environment(**more: str) -> dict[str, str]:
    """Ours, without settings of rsd and proxies, and without a ban on compiled files: a user's
    Python keeps them.
    """
    left_out = ("RSD_", "PYTHONDONTWRITEBYTECODE")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return env | {"NO_PROXY": "127.0.0.1,localhost"} | more


def rsd_command(
    folder: Path,
    urls: tuple[list[str], list[str]],
    work: Work,
    *words: str,
    checkout: Path = HOME,
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of `run`. The images are those of one folder."""
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"prompt1": prompt()}))
    flags = ["--image-dir", str(work.images[0].parent), "--output-dir", str(folder / "output")]
    for name, found in zip(("--vllm-api", "--grading-api"), urls, strict=True):
        for url in found:
            flags += [name, url]
    flags += ["--prompts", str(prompts), "--grading-prompt", str(grading_file(work.listwise))]
    flags += ["--candidates", str(work.candidates), "--max-tokens", str(PARAMS["max_tokens"])]
    flags += ["--temperature-range", str(PARAMS["temperature"])]
    flags += ["--top-p-range", str(PARAMS["top_p"]), "--top-k-range", str(PARAMS["top_k"])]
    flags += ["--gen-workers", str(work.gen_workers), "--grade-workers", str(work.grade_workers)]
    env = clean_environment(
        RSD_RUNTIME_DIR=str(folder / "run"),
        RSD_WATCH_SETTLE_SECONDS="0.05",
        RSD_THROTTLE_ENABLED="false",
        RSD_SAMPLING_STRATEGY="random",
        RSD_GENERATION_MAX_N=str(work.n),
        RSD_GRADING_LIST_SIZE=str(work.candidates),
    )
    return [sys.executable, str(checkout / "daemon.py"), "run", *words, *flags], env


def command_of(
    client: str, folder: Path, sim: Simulator, work: Work
) -> tuple[list[str], dict[str, str]]:
    """How a client is started."""
    if client in ("rsd", "before"):
        if client == "before" and not BEFORE:
            raise SystemExit("RSD_BENCH_BEFORE: name a checkout of another version of rsd")
        checkout = HOME if client == "rsd" else Path(BEFORE)
        urls = [sim.generator], [sim.grader]
        return rsd_command(folder, urls, work, "--once", checkout=checkout)
    script = HOME / "benchmarks" / f"script_{'openai' if client == 'openai' else 'aiohttp'}.py"
    file = job(folder, sim, work, spliced=client == "spliced")
    return [sys.executable, str(script), str(file)], clean_environment()


def _machine_cpu() -> float:
    """Seconds of CPU that the whole machine has used."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(w) for w in words[:8])
    return (user + nice + system + irq + softirq + steal) / _TICK


def _reached_disk(folder: Path) -> int:
    """Bytes that the device below a folder has ever taken, after all that is dirty has gone there:
    field 7 of the kernel's Documentation/block/stat.rst, in sectors of 512. Raises RuntimeError
    where the folder is on no block device (overlay, btrfs, tmpfs); TMPDIR chooses another.
    """
    os.sync()
    device = folder.stat().st_dev
    about = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not about.exists():
        raise RuntimeError(f"{folder} is on no block device; set TMPDIR")
    return 512 * int(about.read_text().split()[6])


def _io() -> dict[str, int]:
    """What this process and all that it has reaped did to the disk, in bytes."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def run(client: str, sim: Simulator, work: Work, slots: tuple[int, int], home: Path) -> Run:
    """One client from its start to its end; `slots` of generator and grader. Its files are
    removed. Raises RuntimeError when it fails or does not do the work.
    """
    with tempfile.TemporaryDirectory(dir=home) as name:
        folder = Path(name)
        command, env = command_of(client, folder, sim, work)
        sim.ask("reset", {})
        disk = _reached_disk(home)
        machine, before, io = _machine_cpu(), sim.cpu(), _io()
        began = time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, cwd=HOME, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        others = _machine_cpu() - machine - cpu - (sim.cpu() - before)
        done, reached = _io(), _reached_disk(home) - disk
        text = (folder / "log").read_text("utf-8", "replace")
    if process.returncode != 0:
        raise RuntimeError(f"{client} ended with {process.returncode}: {text[-2000:]}")
    stats = sim.ask("stats")
    made = stats["generator"]["calls"]["distinct"] + stats["generator"]["calls"]["repeated"]
    if stats["generator"]["calls"]["distinct"] != work.total or made < work.total:
        raise RuntimeError(f"{client} made {made} candidates, not {work.total}: {text[-2000:]}")
    history = sim.ask("history")
    served = history["grader"]["last"] - history["generator"]["first"]
    return Run(
        seconds=seconds,
        served=served,
        busy=busy_shares(history, slots),
        ideal=max(
            stats[role]["busy_seconds"] / most if most else 0.0
            for role, most in zip(("generator", "grader"), slots, strict=True)
        ),
        cpu=cpu,
        written=done["write_bytes"] - io["write_bytes"],
        reached=reached,
        requests=stats["generator"]["answered"] + stats["grader"]["answered"],
        strangers=max(0.0, others) / seconds,
        repeated=made - work.total,
        strings=max(stats[r]["byte_strings"] for r in ("generator", "grader")),
    )


def busy_shares(history: dict[str, Any], slots: tuple[int, int]) -> dict[str, float]:
    """Each pool in the middle of its own run: the grader begins and ends after the generator."""
    found = {}
    for role, most in zip(("generator", "grader"), slots, strict=True):
        seen = history[role]
        first, last = seen["first"], seen["last"]
        if seen["began"] is None or not most:
            found[role] = 0.0
            continue
        low = first + EDGE * (last - first)
        high = last - EDGE * (last - first)
        step, began = seen["step"], seen["began"]
        inside = [
            level
            for k, level in enumerate(seen["busy"])
            if low <= began + k * step and began + (k + 1) * step <= high
        ]
        found[role] = sum(inside) / len(inside) / most if inside else 0.0
    return found


def rounds(
    clients: list[str],
    count: int,
    sim: Simulator,
    work: Work,
    slots: tuple[int, int],
    home: Path,
) -> dict[str, list[Run]]:
    """Several rounds, each with every client, in an order that rotates."""
    found: dict[str, list[Run]] = {client: [] for client in clients}
    for k in range(count):
        turn = k % len(clients)
        for client in clients[turn:] + clients[:turn]:
            one = run(client, sim, work, slots, home)
            found[client].append(one)
            tables.print_line(
                f"  round {k + 1} {client}: {one.seconds:.1f} s, served in {one.served:.1f} s, "
                f"CPU {one.cpu:.1f} s, others {one.strangers:.2f} cores"
            )
    return found


def median(runs: list[Run], name: str) -> float:
    """The median of a figure over the rounds."""
    return statistics.median(getattr(r, name) for r in runs)


# ---------------------------------------------------------------------------- a running daemon


def processes_of(pid: int) -> list[int]:
    """A process and all below it."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(word) for word in (task / "children").read_text().split()]
    return found


def pss(pid: int) -> float:
    """Proportional memory of a process in MB; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    line = next((x for x in text.splitlines() if x.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1]) / 1000


def private(pid: int) -> float:
    """Memory that only this process holds, in MB; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    wanted = ("Private_Clean:", "Private_Dirty:")
    return sum(int(x.split()[1]) for x in text.splitlines() if x.startswith(wanted)) / 1000


@dataclass
class Daemon:
    """`run` without `--once`, for figures that need a living daemon."""

    folder: Path
    urls: tuple[list[str], list[str]]
    work: Work
    more: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again on the same state."""
        command, env = rsd_command(self.folder, self.urls, self.work)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=env | self.more, cwd=HOME, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """SIGTERM, and wait."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """SIGKILL; harmless when it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def live(self) -> dict[str, Any]:
        """The status document; {} while there is none of this process."""
        try:
            document = json.loads((self.folder / "output/state/live.json").read_bytes())
        except (OSError, ValueError):
            return {}
        mine = self.process is not None and document["pid"] == self.process.pid
        return document if mine else {}

    def pid_of(self, role: str) -> int:
        """Of the hub or the first child of a role."""
        assert self.process is not None
        if role == "hub":
            return self.process.pid
        return next(int(p["pid"]) for p in self.live()["processes"] if p["role"] == role)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder that is removed afterwards; TMPDIR says where. rsd is compiled, as an installation
    leaves it.
    """
    for checkout in filter(None, (str(HOME), BEFORE)):
        compileall.compile_dir(Path(checkout) / "rsd", quiet=1)
    with tempfile.TemporaryDirectory(prefix="rsd-bench-") as name:
        yield Path(name)


def strangers(found: dict[str, list[Run]]) -> str:
    """How loaded the machine was by others."""
    all_runs = [r for runs in found.values() for r in runs]
    seen = [r.strangers for r in all_runs]
    return f"others used {statistics.median(seen):.2f} cores (at most {max(seen):.2f})"
