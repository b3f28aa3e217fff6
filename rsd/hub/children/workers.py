"""The generator and grader processes as the settings want them: hired, told, replaced, given up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

import msgspec

from rsd.hub.children.local import Child, Pool
from rsd.hub.policy import configure_of, processes_of, slots
from rsd.protocol.tasks import from_worker_decoder
from rsd.protocol.vocabulary import Role
from rsd.settings.fields import Settings

#: What a process of a role is called.
WORDS: dict[str, str] = {Role.GENERATE: "generator", Role.GRADE: "grader"}

Main = Callable[[Connection, Connection, str, int], None]


class Workers:
    """The workers' places in a pool. `mains`: what runs in a process of each role."""

    def __init__(self, pool: Pool, mains: Mapping[str, Main]) -> None:
        self._pool = pool
        self._mains = mains
        self._serial = 0

    def workers(self) -> list[Child]:
        """All of them, those that are about to leave included."""
        return [c for c in self._pool.children.values() if c.role in self._mains]

    def hire(self, settings: Settings) -> None:
        """Places for as many as the settings say; the processes start with the pool's next look."""
        for role, threads in slots(settings).items():
            for _ in range(processes_of(settings, role)):
                self._serial += 1
                name = f"{WORDS[role]}-{self._serial}"
                main = self._mains[role]
                # Generators decode what anybody may have drawn: no key of the grader is in their
                # memory, nor anything else that they are not told.
                isolated = role is Role.GENERATE
                args = (name, threads)
                self._pool.add(name, role, main, args, from_worker_decoder, isolated=isolated)

    def follow(self, before: Settings, after: Settings) -> list[str]:
        """After a reload: the same workers are told, or others are hired for them when their number
        or their threads change. Returns who is at work and leaves after the last call (`retire`).
        """
        leaving = []
        if (slots(before), before.processes) != (slots(after), after.processes):
            leaving = self._dismiss()
            self.hire(after)
        for child in self.workers():
            if child.wanted:
                self._pool.put(child, configure_of(after, Role(child.role)))
        return leaving

    def broadcast(self, message: msgspec.Struct) -> None:
        """A message to every worker."""
        for child in self.workers():
            self._pool.put(child, message)

    def _dismiss(self) -> list[str]:
        """None of the present workers is wanted any more: those not at work end now."""
        busy = []
        for child in self.workers():
            child.wanted, child.restart_at = False, None
            if child.ready:
                busy.append(child.name)
            else:
                self._pool.retire(child.name)
        return busy

    def freeze(self) -> None:
        """The hub stops: nobody is started any more, and who dies is not replaced."""
        for child in self.workers():
            child.wanted, child.restart_at = False, None

    def retire(self, idle: list[str]) -> None:
        """These hold nothing any more: who is not wanted ends."""
        for name in idle:
            child = self._pool.children.get(name)
            if child is not None and not child.wanted and not child.closing:
                self._pool.retire(name)

    def revive(self, now: float) -> None:
        """An operator may have mended what killed them: the given up are tried at once."""
        for child in self.workers():
            if child.fatal and child.wanted and child.process is None:
                child.quick_deaths, child.restart_at = 0, now

    def given_up(self) -> str:
        """A role (the writer's, too) of which every process dies again and again, in words; "" when
        there is none.
        """
        wanted = [c for c in self._pool.children.values() if c.wanted]
        for role in {c.role for c in wanted if c.fatal}:
            if all(c.fatal for c in wanted if c.role == role):
                return f"every {WORDS.get(role, role)} process dies at its start"
        return ""
