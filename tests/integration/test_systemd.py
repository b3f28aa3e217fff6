"""The service in a real systemd: installed, started, killed, frozen, stopped.

Needs root and a guest: see systemd_guest.py. RSD_SYSTEMD_GUEST=SCRIPT RSD_SYSTEMD_ROOT=DIR.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.systemd_guest import DAEMON, PYTHON, UNIT, Guest, booted, missing
from tests.support import Simulator, draw

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
]

#: Asked for by both models of the simulator.
KEY = "key-of-the-test-57"
#: `systemd-analyze security` weighs 0 (safe) to 10; the network and the user's files cost the rest.
EXPOSURE = 2.0
#: Seconds between two beats of the watchdog, in this test; the unit has 60.
WATCHDOG = 6


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with booted(tmp_path_factory.mktemp("guest")) as running:
        yield running


@pytest.fixture(scope="module")
def models() -> Iterator[Simulator]:
    running = Simulator("--api-key", KEY, "--service-seconds", "0.2")
    yield running
    running.stop()


@pytest.fixture
def service(guest: Guest, models: Simulator, tmp_path: Path) -> Iterator[Guest]:
    """Installed for /srv/images and /srv/rsd-out, with keys, not started."""
    for name in ("images", "rsd-out"):
        shutil.rmtree(guest.share / name, ignore_errors=True)
    (guest.share / "images").mkdir(mode=0o755)
    (guest.share / "key").write_text(KEY + "\n")
    guest.install("/srv/images", "/srv/rsd-out", KEYFILE="/srv/key")
    guest.configure(
        generation__api=f'["{models.generator}"]',
        grading__api=f'["{models.grader}"]',
        watch__settle_seconds="0.2",
        errors__probe_seconds="0.5",
        throttle__enabled="false",
    )
    guest.write("/etc/rsd/generation-key", KEY, "0600")
    yield guest
    guest.remove()


def drop(guest: Guest, seed: int) -> None:
    """A new picture, in one rename."""
    whole = draw(guest.share / f"{seed}.png", seed)
    whole.chmod(0o644)
    whole.rename(guest.share / "images" / whole.name)


def results(guest: Guest) -> dict[str, Path]:
    """File name of the picture to its only result."""
    found: dict[str, Path] = {}
    for folder in ("high_quality", "low_quality"):
        for path in (guest.share / "rsd-out" / folder).glob("*.json"):
            name = json.loads(path.read_text())["image_info"]["filename"]
            assert name not in found, f"two results for {name}"
            found[name] = path
    return found


def has_results(guest: Guest, count: int) -> None:
    guest.until(lambda: len(results(guest)) == count, f"{count} results")


def test_unit_is_valid_and_closed(service: Guest) -> None:
    said = service.call("systemd-analyze", "verify", UNIT)
    assert said.returncode == 0 and "rsd" not in said.stderr, said.stderr
    table = service.run("systemd-analyze", "security", "--no-pager", "rsd.service")
    match = re.search(r"Overall exposure level for rsd.service: ([\d.]+)", table)
    assert match is not None, table
    print(match.group(0))
    assert float(match.group(1)) <= EXPOSURE, table


def test_picture_becomes_a_result_and_anyone_may_ask(service: Guest) -> None:
    service.run("systemctl", "start", "rsd")
    assert service.run("systemctl", "is-active", "rsd").strip() == "active"
    drop(service, 1)
    has_results(service, 1)
    service.until(lambda: "1 done" in service.show("StatusText"), "a status line that counts")
    assert 'Status: "ok: 1 done' in service.run("systemctl", "status", "--no-pager", "rsd")
    result = results(service)["1.png"]
    assert result.stat().st_mode & 0o444 == 0o444
    said = service.as_nobody("status")
    assert said.returncode == 0, said.stdout + said.stderr
    document = json.loads(service.as_nobody("status", "--json").stdout)
    assert document["images"]["seen"] == 1
    assert KEY not in service.turn()
    owner = service.run("stat", "-c", "%U", "/srv/rsd-out/state").strip()
    assert owner == "rsd"


def test_the_folder_made_again_is_watched_again(service: Guest) -> None:
    service.configure(watch__rescan_seconds="2.0")
    service.run("systemctl", "start", "rsd")
    drop(service, 2)
    has_results(service, 1)
    shutil.rmtree(service.share / "images")
    (service.share / "images").mkdir(mode=0o755)
    drop(service, 3)
    has_results(service, 2)


def test_killed_hub_is_started_again(service: Guest) -> None:
    service.run("systemctl", "start", "rsd")
    first = service.show("MainPID")
    for seed in range(10, 16):
        drop(service, seed)
    service.until(lambda: results(service), "the first result")
    service.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "rsd")
    service.until(
        lambda: service.show("ActiveState") == "active" and service.show("MainPID") != first,
        "a new hub",
    )
    has_results(service, 6)
    assert service.show("NRestarts") == "1"


def test_frozen_hub_is_killed_by_the_watchdog(service: Guest) -> None:
    service.write(f"{UNIT}.d/test.conf", f"[Service]\nWatchdogSec={WATCHDOG}\n")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "start", "rsd")
    first = int(service.show("MainPID"))
    drop(service, 20)
    has_results(service, 1)
    service.run("systemctl", "kill", "-s", str(int(signal.SIGSTOP)), "--kill-whom=main", "rsd")
    drop(service, 21)
    service.until(lambda: int(service.show("MainPID")) not in (0, first), "a new hub")
    has_results(service, 2)
    assert "watchdog" in service.run("journalctl", "--no-pager", "-u", "rsd").lower()


def test_stop_drains_and_the_rest_comes_later(service: Guest) -> None:
    service.run("systemctl", "start", "rsd")
    for seed in range(30, 50):
        drop(service, seed)
    service.until(lambda: results(service), "the first result")
    service.run("systemctl", "stop", "rsd")
    assert service.show("Result") == "success"
    assert service.show("ExecMainStatus") == "0"
    assert service.show("ActiveState") == "inactive"
    assert service.as_nobody("status").returncode == 3
    assert service.call(PYTHON, DAEMON, "status").returncode == 3
    service.run("systemctl", "start", "rsd")
    has_results(service, 20)


def test_reload_keeps_the_process(service: Guest) -> None:
    service.run("systemctl", "start", "rsd")
    first = service.show("MainPID")
    service.configure(sampling__strategy='"random"', sampling__candidates="2")
    service.run("systemctl", "reload", "rsd")
    service.until(lambda: "reload" in service.turn().lower(), "a word about the reload")
    drop(service, 60)
    has_results(service, 1)
    document = json.loads(results(service)["60.png"].read_text())
    assert len(document["all_candidates"]) <= 2
    assert service.show("MainPID") == first


def test_missing_key_file_is_no_reason_to_stay_down(service: Guest) -> None:
    service.run("rm", "/etc/rsd/generation-key")
    service.run("systemctl", "start", "rsd")
    drop(service, 70)
    service.until(lambda: service.status().get("health") == "degraded", "a complaint")
    assert not results(service)
    service.write("/etc/rsd/generation-key", KEY, "0600")
    service.run("systemctl", "restart", "rsd")
    has_results(service, 1)


def test_wrong_configuration_stays_down_with_one_line(service: Guest) -> None:
    service.configure(sampling__score_threshold="101.0")
    assert service.call("systemctl", "start", "rsd").returncode != 0
    assert service.show("ActiveState") == "failed"
    assert service.show("NRestarts") == "0"
    lines = [li for li in service.turn().splitlines() if "score_threshold" in li]
    assert "sampling.score_threshold = 101.0" in lines[-1]
    assert "Traceback" not in service.turn()


def test_install_again_keeps_what_is_the_users(service: Guest) -> None:
    service.run("systemctl", "start", "rsd")
    before = service.run("cat", "/etc/rsd/rsd.toml")
    service.run("sh", "-c", 'echo \'{"template": "Mine {generated_answer}"}\' > /srv/mine.json')
    service.run("cp", "/srv/mine.json", "/etc/rsd/prompts/grading_prompt.json")
    said = service.install("/srv/images", "/srv/rsd-out")
    assert "running again" in said
    assert service.show("ActiveState") == "active"
    assert service.run("cat", "/etc/rsd/rsd.toml") == before
    assert "Mine" in service.run("cat", "/etc/rsd/prompts/grading_prompt.json")


def test_pictures_in_a_closed_home(service: Guest, models: Simulator) -> None:
    service.remove()
    home = "/home/someone"
    service.run("rm", "-rf", home)
    service.run("install", "-d", "-m", "0700", home)
    service.run("install", "-d", "-m", "0755", f"{home}/my pictures")
    service.install(f"{home}/my pictures", "/srv/rsd-out", KEYFILE="/srv/key")
    service.configure(
        generation__api=f'["{models.generator}"]',
        grading__api=f'["{models.grader}"]',
        watch__settle_seconds="0.2",
        throttle__enabled="false",
    )
    service.write("/etc/rsd/generation-key", KEY, "0600")
    service.run("systemctl", "start", "rsd")
    picture = draw(service.share / "80.png", 80)
    picture.chmod(0o644)
    service.run("mv", "/srv/80.png", f"{home}/my pictures/80.png")
    has_results(service, 1)
    service.run("rm", "-rf", home)


def test_uninstall_leaves_configuration_and_results(service: Guest) -> None:
    service.run("systemctl", "start", "rsd")
    drop(service, 90)
    has_results(service, 1)
    said = service.run("make", "-C", "/src", "uninstall")
    assert "is uninstalled" in said
    assert len(results(service)) == 1
    service.run("test", "-e", "/etc/rsd/rsd.toml")
    service.run("test", "!", "-e", "/opt/rsd", "-a", "!", "-e", UNIT)
