"""When a child counts as hung. Times are arguments."""

from __future__ import annotations

import msgspec

from rsd.hub.children.heartbeat import HUNG_SECONDS, PING_SECONDS, SILENT_SECONDS, Heartbeat
from rsd.hub.children.writer_client import WriterClient
from rsd.protocol.vocabulary import Stats, SummaryConfig
from rsd.protocol.writer_talk import Open, Ping, Pong


def watched(heart: Heartbeat, until: float, *, answers: bool) -> str:
    """Look every second from 0; why it had to go at last."""
    heart.started(0.0)
    for second in range(1, int(until) + 1):
        if heart.ping_due(float(second)) and answers:
            heart.heard(float(second))
        if why := heart.hung(float(second)):
            return f"{second}: {why}"
    return ""


def test_who_answers_lives_and_who_does_not_has_to_go() -> None:
    assert watched(Heartbeat(), 10 * HUNG_SECONDS, answers=True) == ""
    assert watched(Heartbeat(), HUNG_SECONDS - 1, answers=False) == ""
    why = watched(Heartbeat(), HUNG_SECONDS, answers=False)
    assert why == "120: it has said nothing for 120 s"


def test_who_is_at_one_thing_for_too_long_has_to_go_although_it_answers() -> None:
    heart = Heartbeat(60.0)
    heart.started(0.0)
    heart.busy(59.0)
    assert heart.hung(1.0) == ""
    heart.busy(61.0)
    assert heart.hung(1.0) == "it has been at one thing for 61 s"
    heart.started(2.0)
    assert heart.hung(2.0) == ""


def test_a_hub_that_was_stopped_itself_blames_nobody() -> None:
    heart = Heartbeat()
    heart.started(0.0)
    assert not heart.ping_due(1.0)
    assert heart.ping_due(3600.0), "the terminal was suspended for an hour"
    assert heart.hung(3600.0) == "" and not heart.silent(3600.0)
    for second in range(3601, 3601 + int(SILENT_SECONDS)):
        heart.ping_due(float(second))
    assert heart.silent(3600.0 + SILENT_SECONDS)


def opening() -> Open:
    summary = SummaryConfig(
        image_dir="i",
        prompt_keys=(),
        score_threshold=90.0,
        temperature_range=(0.0, 1.0),
        top_p_range=(1.0, 1.0),
        top_k_range=(1, 1),
    )
    return Open(
        state_dir="s",
        output_dir="o",
        life="l",
        recover=True,
        checkpoint_interval=10,
        summary=summary,
        log_level="INFO",
    )


def test_the_writer_is_judged_by_its_main_loop_but_not_while_a_disk_refuses() -> None:
    sent: list[msgspec.Struct] = []
    client = WriterClient(opening(), sent.append)
    client.started(0.0)
    client.pong(Pong(query=0, busy_seconds=HUNG_SECONDS))
    assert client.tend(1.0) == "", "it opens the store: that may take its time"
    client.opened(Stats())
    client.pong(Pong(query=0, blocked="full", busy_seconds=HUNG_SECONDS))
    assert client.tend(2.0) == "" and client.responsive(2.0)
    client.pong(Pong(query=0, busy_seconds=HUNG_SECONDS - 1))
    assert client.tend(3.0) == "" and client.responsive(3.0)
    client.pong(Pong(query=0, busy_seconds=HUNG_SECONDS))
    assert not client.responsive(4.0), "the watchdog of systemd is not fed"
    assert client.tend(4.0 + PING_SECONDS) == "it has been at one thing for 120 s"
    assert any(isinstance(message, Ping) for message in sent)
