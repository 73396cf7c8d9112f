"""Processes told apart from whatever later gets the same number: by their start time too."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"
_NUMBERS = _PROC / "self/ns/pid"


@dataclass(frozen=True)
class Process:
    """One running process. `identity` names it for ever; `session` and `parent` are numbers."""

    pid: int
    parent: int
    session: int
    identity: str
    command: str


def running() -> list[Process]:
    """Every process this user can see that is not a zombie, in no particular order."""
    if _BOOT_ID.exists():
        # Containers may share a directory, but not each other's process numbers.
        boot = f"{_BOOT_ID.read_text().strip()[:8]}-{_NUMBERS.stat().st_ino:x}"
        found = (_from_proc(entry, boot) for entry in _PROC.iterdir() if entry.name.isdecimal())
        return [process for process in found if process is not None]
    return _from_ps()


def find(pid: int) -> Process | None:
    """The running process with this number, or None."""
    return next((process for process in running() if process.pid == pid), None)


def members(session: int, identities: Iterable[str]) -> list[Process]:
    """The living processes of a session, and their descendants.

    The session counts as the one meant only while a process known by `identities` still lives
    in it; otherwise just the known ones are returned, since the number may be someone else's.
    """
    known = set(identities)
    table = running()
    chosen = {process.pid: process for process in table if process.identity in known}
    if any(process.session == session for process in chosen.values()):
        chosen |= {process.pid: process for process in table if process.session == session}
    while True:
        children = [p for p in table if p.parent in chosen and p.pid not in chosen]
        if not children:
            return list(chosen.values())
        chosen |= {process.pid: process for process in children}


def send(targets: Iterable[Process], number: signal.Signals) -> None:
    """Signal those of `targets` that still live."""
    living = {process.identity for process in running()}
    for process in targets:
        if process.identity in living:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


def wait_until(done: Callable[[], bool], *, seconds: float, every: float = 0.1) -> bool:
    """Poll `done` until it holds or the time is over; returns whether it held."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(every)
    return True


def gone(targets: Iterable[Process]) -> bool:
    """True when none of `targets` lives any more."""
    wanted = {process.identity for process in targets}
    return all(process.identity not in wanted for process in running())


def _from_proc(entry: Path, boot: str) -> Process | None:
    try:
        stat = (entry / "stat").read_text()
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it ended while we looked
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    state, parent, _, session, *rest = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    pid = int(entry.name)
    return Process(pid, int(parent), int(session), f"{boot}:{rest[15]}:{pid}", command.strip())


def _from_ps() -> list[Process]:
    fields = "pid=,ppid=,stat=,lstart=,command="
    text = subprocess.run(
        ["ps", "-A", "-o", fields], capture_output=True, text=True, check=True
    ).stdout
    result = []
    for line in text.splitlines():
        pid, parent, state, *start = line.split(None, 8)
        command = start.pop() if len(start) > 5 else ""
        if state.startswith("Z"):
            continue
        try:
            session = os.getsid(int(pid))
        except OSError:
            continue
        identity = f"ps:{'-'.join(start)}:{pid}"
        result.append(Process(int(pid), int(parent), session, identity, command))
    return result
