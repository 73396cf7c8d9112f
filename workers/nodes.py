"""Ray nodes that this machine starts and ends: a head, workers, and the record of both.

Every node is one session of processes, written down with their start times, so that stopping
never ends a process that is not ours; `ray stop` would end every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from wiring.config import Config, parse
from wiring.errors import ClusterError, ConfigError
from workers import processes
from workers.access import (
    check_reachable,
    check_token,
    environment,
    is_loopback,
    make_token,
    node_address,
    split_address,
)

DEFAULT_PORT = 6379
_START_SECONDS = 90.0


class Member(Config):
    """A process of a node, by number and by what stays unique after the number is reused."""

    pid: int
    identity: str
    command: str


class Node(Config):
    """What `start_head` and `start_worker` started on this machine."""

    version: Literal[1] = 1
    role: Literal["head", "worker"]
    address: str = Field(description="host:port of the cluster's head")
    host: str | None
    session: int
    temp_dir: Path
    token_file: Path | None
    dashboard: str | None = None
    members: tuple[Member, ...]

    def alive(self) -> bool:
        """True while this node's raylet runs."""
        return any(_is_raylet(process) for process in self.running())

    def running(self) -> list[processes.Process]:
        return processes.members(self.session, (member.identity for member in self.members))


def start_head(
    directory: Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    dashboard_port: int | None = None,
    token_file: Path | None = None,
    token: bool = True,
    options: Sequence[str] = (),
) -> Node:
    """Start a cluster's head on this machine. Port 0 takes a free one.

    `dashboard_port` None: no dashboard. `options` go to `ray start` as they are. Raises
    ClusterError where the port is taken, a head of this directory runs, or Ray does not start.
    """
    for head in (node for node in load(directory) if node.role == "head"):
        if head.alive():
            raise ClusterError(
                f"a head started from {directory} already runs at {head.address}; stop it first"
            )
        _end(directory, [head], 3.0)
    port = port or _free_port()
    for wanted in (port, dashboard_port):
        if wanted is not None:
            _check_free(wanted)
    secret = make_token(token_file or directory / "token") if token else None
    ip = node_address(host)
    arguments = [
        "--head",
        f"--port={port}",
        f"--node-ip-address={ip}",
        # Ray Client's default port is one for the whole machine; we never use it.
        f"--ray-client-server-port={_free_port()}",
        f"--include-dashboard={'true' if dashboard_port is not None else 'false'}",
        "--dashboard-host=127.0.0.1",
        *([f"--dashboard-port={dashboard_port}"] if dashboard_port is not None else []),
        *_resources(num_cpus, num_gpus),
        *options,
    ]
    shown = "127.0.0.1" if is_loopback(host) else host
    url = f"http://127.0.0.1:{dashboard_port}" if dashboard_port is not None else None
    return _start(directory, "head", f"{shown}:{port}", host, arguments, secret, url)


def start_worker(
    directory: Path,
    address: str,
    *,
    host: str | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    token_file: Path | None = None,
    token: bool = True,
    options: Sequence[str] = (),
) -> Node:
    """Join the cluster at `address` with this machine.

    `host` is the address other nodes reach this one by; None lets Ray find it. Raises
    ClusterError where the head does not answer or Ray does not start.
    """
    head_host, port = split_address(address)
    check_reachable(address)
    secret = check_token(token_file or directory / "token") if token else None
    if host is None and is_loopback(head_host):
        host = head_host
    arguments = [
        f"--address={node_address(head_host)}:{port}",
        *([f"--node-ip-address={node_address(host)}"] if host else []),
        *_resources(num_cpus, num_gpus),
        *options,
    ]
    return _start(directory, "worker", address, host, arguments, secret, None)


def load(directory: Path) -> list[Node]:
    """The nodes recorded in `directory`, the head first. Raises ClusterError on a bad record."""
    found = []
    for path in sorted((directory / "nodes").glob("*.json")):
        try:
            found.append(parse(Node, json.loads(path.read_text()), where=str(path)))
        except (OSError, ValueError, ConfigError) as error:
            raise ClusterError(f"the cluster record {path} is damaged: {error}") from None
    return sorted(found, key=lambda node: node.role)


def stop(directory: Path, *, seconds: float = 10.0) -> int:
    """End every process of the nodes recorded in `directory`; returns how many there were.

    Raylets are asked first and have `seconds`, then the rest, then whatever is left is killed.
    Raises ClusterError where one survives.
    """
    return _end(directory, load(directory), seconds)


def ray_command() -> str:
    """The `ray` that belongs to this interpreter. Raises ClusterError where there is none."""
    path = Path(sys.executable).parent / "ray"
    if not path.exists():
        raise ClusterError(f"there is no 'ray' command beside {sys.executable}")
    return str(path)


def short_directory() -> Path:
    """A new private directory with a short path: Ray's socket names must fit 107 bytes."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="wiring-", dir=base if len(base) <= 20 else "/tmp"))


def _start(
    directory: Path,
    role: Literal["head", "worker"],
    address: str,
    host: str | None,
    arguments: list[str],
    token_file: Path | None,
    dashboard: str | None,
) -> Node:
    temp = short_directory()
    log = temp / "start.log"
    command = [
        ray_command(),
        "start",
        *arguments,
        f"--temp-dir={temp / 'ray'}",  # Ray opens its directory to all; its parent stays ours
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
        "--log-style=record",
        "--log-color=false",
    ]
    if not any("worker-port" in argument for argument in arguments):
        command += ["--min-worker-port=0", "--max-worker-port=0"]
    with log.open("wb") as output:
        launcher = subprocess.Popen(
            command,
            env=environment(token_file),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    session = launcher.pid
    try:
        code = launcher.wait(timeout=_START_SECONDS)
    except BaseException as error:
        _end_session(session)
        launcher.wait()
        shutil.rmtree(temp, ignore_errors=True)
        if isinstance(error, subprocess.TimeoutExpired):
            raise ClusterError(
                f"Ray's {role} did not start within {_START_SECONDS:.0f} s"
            ) from None
        raise
    found = [p for p in processes.running() if p.session == session]
    if code != 0 or not found:
        _end_session(session)
        reason = _last_line(log.read_text(errors="replace"))
        shutil.rmtree(temp, ignore_errors=True)
        raise ClusterError(f"Ray's {role} did not start (exit code {code}): {reason}")
    node = Node(
        role=role,
        address=address,
        host=host,
        session=session,
        temp_dir=temp,
        token_file=token_file,
        dashboard=dashboard,
        members=tuple(
            Member(pid=p.pid, identity=p.identity, command=p.command[:200]) for p in found
        ),
    )
    path = _record(directory, session)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(node.to_dict(), indent=1))
    partial.replace(path)
    return node


def _end(directory: Path, nodes: Sequence[Node], seconds: float) -> int:
    def members() -> list[processes.Process]:
        return [process for node in nodes for process in node.running()]

    found = members()
    for targets, number, patience in (
        ([process for process in found if _is_raylet(process)], signal.SIGTERM, seconds),
        (found, signal.SIGTERM, 2.0),  # the autoscaler's monitor does not heed it
        (found, signal.SIGKILL, 5.0),
    ):
        processes.send(targets, number)
        processes.wait_until(partial(processes.gone, targets), seconds=patience)
        # A raylet may have forked meanwhile; the session is ours while another member lives.
        found += [late for late in members() if late not in found]
    if not processes.gone(found):
        alive = {process.identity for process in processes.running()}
        pids = sorted({process.pid for process in found if process.identity in alive})
        raise ClusterError(f"processes of the cluster survived being killed: {pids}")
    for node in nodes:
        shutil.rmtree(node.temp_dir, ignore_errors=True)
        _record(directory, node.session).unlink(missing_ok=True)
    return len(found)


def _is_raylet(process: processes.Process) -> bool:
    return Path(process.command.split(" ")[0]).name == "raylet"


def _record(directory: Path, session: int) -> Path:
    return directory / "nodes" / f"{session}.json"


def _end_session(session: int) -> None:
    for process in processes.running():
        if process.session == session:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    faults = [line for line in lines if "Error" in line]
    return (faults or lines or ["it said nothing"])[-1][:300]


def _resources(num_cpus: int | None, num_gpus: int | None) -> list[str]:
    pairs = (("--num-cpus", num_cpus), ("--num-gpus", num_gpus))
    return [f"{name}={value}" for name, value in pairs if value is not None]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ClusterError(f"port {port} cannot be used: {error.strerror}") from None
