"""Clusters on several machines through Ray's own launcher, with its claims checked.

`ray up` may end with fewer nodes than asked for; `ray down` runs a bare `ray stop` on the head
alone, and where `ray` is not on the PATH it says "No nodes remaining" or waits for ever while
every raylet runs on. So the hosts are stopped by the file's own commands first, the head is
asked for its nodes, and the hosts for their raylets.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from wiring.errors import ClusterError, ConfigError
from workers.launchfile import Launch, read_launch, token_of
from workers.nodes import ray_command
from workers.probe import NodeInfo, query

Say = Callable[[str], None]
CONNECT_SECONDS = 5
# Works without ps or pgrep on the host.
_RAYLETS = (
    "for p in /proc/[0-9]*; do "
    '[ "$(cat $p/comm 2>/dev/null)" = raylet ] && echo raylet ${p#/proc/}; '
    "done; echo checked"
)


class UpResult(BaseModel):
    """`address` of the head and the nodes that are alive."""

    address: str
    nodes: tuple[NodeInfo, ...]
    seconds: float


class DownResult(BaseModel):
    """Hosts that were asked and run no raylet any more."""

    hosts: tuple[str, ...]
    seconds: float


def up(path: Path, *, open_cluster: bool = False, seconds: float = 600.0, say: Say) -> UpResult:
    """Start the cluster that `path` describes and wait until all its nodes are alive.

    Without a token only when `open_cluster`. Raises ConfigError for the file, ClusterError for
    hosts that do not answer, for the launcher's failure, and for nodes that are not alive within
    `seconds`.
    """
    start = time.monotonic()
    launch = read_launch(path)
    token = token_of(launch, path)
    if token is None and not open_cluster:
        raise ConfigError(
            f"{path}: head_start_ray_commands start Ray without RAY_AUTH_MODE=token, so anyone "
            f"who reaches its ports runs code there; add it or pass --no-token"
        )
    for remote, local in launch.file_mounts.items():
        if not local.expanduser().exists():
            raise ConfigError(f"{path}: file_mounts.{remote}: there is no file {local}")
    _check_tools()
    _check_hosts(launch)
    say(f"{launch.cluster_name}: {len(launch.hosts) or 'cloud'} hosts answer, starting Ray")
    _launcher(up_command(path), deadline=start + seconds, say=say)
    host = launch.provider.head_ip or _head_ip(path, deadline=start + seconds)
    address = f"{host}:{launch.port}"
    secret = {"RAY_AUTH_MODE": "disabled"}
    if token is not None:
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    count, fault = -1, ""
    while True:
        try:
            nodes = query(address, secret=secret)
            alive, fault = [node for node in nodes if node.alive], ""
        except ClusterError as error:
            alive, fault = [], f": {error}"
        if len(alive) >= launch.expected:
            return UpResult(address=address, nodes=tuple(alive), seconds=time.monotonic() - start)
        if time.monotonic() - start > seconds:
            missing = sorted(set(launch.hosts) - {node.host for node in alive})
            raise ClusterError(
                f"{len(alive)} of {launch.expected} nodes are alive after {seconds:g} s, "
                f"missing {', '.join(missing) or 'cloud nodes'}{fault}"
            )
        if len(alive) != count:
            count = len(alive)
            say(f"{count} of {launch.expected} nodes alive")
        time.sleep(1.0)


def down(path: Path, *, seconds: float = 300.0, say: Say) -> DownResult:
    """End the cluster that `path` describes and check every host for raylets.

    Raises ClusterError naming the hosts that still run one or could not be asked.
    """
    start = time.monotonic()
    launch = read_launch(path)
    _check_tools()
    for hosts in (launch.hosts[:1], launch.hosts[1:]):  # a living head would restart its workers
        with ThreadPoolExecutor(max_workers=16) as pool:
            for host, done in zip(hosts, pool.map(partial(_stop_host, launch), hosts), strict=True):
                say(f"{host}: {'asked to stop' if done else 'could not be asked to stop'}")
    _launcher(down_command(path), deadline=start + seconds, say=say)
    if launch.provider.type != "local":
        say("the hosts belong to a cloud: its console tells whether they ended")
        return DownResult(hosts=(), seconds=time.monotonic() - start)
    while True:
        with ThreadPoolExecutor(max_workers=16) as pool:
            answers = dict(
                zip(launch.hosts, pool.map(lambda h: raylets(launch, h), launch.hosts), strict=True)
            )
        if not any(answers.values()) or time.monotonic() - start > min(seconds, 60.0):
            break
        time.sleep(1.0)  # raylets take a moment to end
    silent = [host for host, found in answers.items() if found is None]
    busy = [f"{host} (pid {', '.join(map(str, f))})" for host, f in answers.items() if f]
    if busy:
        raise ClusterError(f"raylets still run on {', '.join(busy)}, whatever the launcher said")
    if silent:
        raise ClusterError(f"could not check for raylets on {', '.join(silent)}: no answer by SSH")
    return DownResult(hosts=launch.hosts, seconds=time.monotonic() - start)


def up_command(path: Path) -> list[str]:
    return [ray_command(), "up", "-y", "--no-config-cache", *_STYLE, str(path)]


def down_command(path: Path) -> list[str]:
    return [ray_command(), "down", "-y", *_STYLE, str(path)]


_STYLE: Sequence[str] = ("--log-style=record", "--log-color=false")


def ssh_command(launch: Launch, host: str, command: str) -> list[str]:
    """`command` on `host` the way the launcher goes there, but never asking and never waiting."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_SECONDS),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "2",
        "StrictHostKeyChecking": "no",  # these three as Ray's launcher has them
        "UserKnownHostsFile": os.devnull,
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
    }
    if launch.auth.ssh_proxy_command:
        options["ProxyCommand"] = launch.auth.ssh_proxy_command
    flags = [flag for key, value in options.items() for flag in ("-o", f"{key}={value}")]
    key = launch.auth.ssh_private_key
    identity = ["-i", str(key.expanduser())] if key is not None else []
    target = f"{launch.auth.ssh_user}@{host}"
    return ["ssh", *flags, *identity, target, f"sh -c {shlex.quote(command)}"]


def raylets(launch: Launch, host: str) -> list[int] | None:
    """The numbers of the raylets that run on `host`; None where it does not answer."""
    done = _ssh(launch, host, _RAYLETS)
    if done is None or "checked" not in done.stdout.split():
        return None
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("raylet")]


def _ssh(
    launch: Launch, host: str, command: str, *, seconds: float = CONNECT_SECONDS * 4
) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ssh_command(launch, host, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return None


def _stop_host(launch: Launch, host: str) -> bool:
    head = host == launch.provider.head_ip
    commands = launch.head_start_ray_commands if head else launch.worker_start_ray_commands
    command = next((c for c in commands if "ray stop" in c), "ray stop")
    # A login shell, as the launcher has: the command may activate an environment.
    done = _ssh(launch, host, f"bash --login -c {shlex.quote(command)}", seconds=60)
    return done is not None and done.returncode == 0


def _check_tools() -> None:
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise ClusterError(f"Ray's launcher needs '{tool}', which is not installed here")


def _check_hosts(launch: Launch) -> None:
    def fault(host: str) -> str | None:
        done = _ssh(launch, host, "command -v rsync >/dev/null || echo no rsync")
        if done is None:
            return f"{host} (no answer within {CONNECT_SECONDS * 4} s)"
        if done.returncode != 0:
            return f"{host} ({(done.stderr.strip() or 'no message').splitlines()[-1]})"
        return f"{host} (rsync is not installed there)" if done.stdout.strip() else None

    with ThreadPoolExecutor(max_workers=16) as pool:
        faults = [text for text in pool.map(fault, launch.hosts) if text]
    if faults:
        raise ClusterError(f"cannot use as {launch.auth.ssh_user}: {'; '.join(faults)}")


def _launcher(command: list[str], *, deadline: float, say: Say) -> str:
    """Run Ray's launcher to its end or the deadline, passing its lines on; returns its output."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            say(lines[-1])

    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = pool.submit(read)
        try:
            code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # its ssh and rsync are in the same group
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                last = next((line for line in reversed(lines) if line), "nothing")
                raise ClusterError(
                    f"'ray {command[1]}' passed its deadline, last saying: {last}"
                ) from None
            raise
        reading.result()
    if code != 0:
        last = next((line for line in reversed(lines) if line), "nothing")
        raise ClusterError(f"'ray {command[1]}' failed with exit code {code}, saying: {last}")
    return "\n".join(lines)


def _quiet(line: str) -> None: ...


def _head_ip(path: Path, *, deadline: float) -> str:
    output = _launcher([ray_command(), "get-head-ip", str(path)], deadline=deadline, say=_quiet)
    lines = output.split()
    if not lines:
        raise ClusterError(f"Ray's launcher does not say where the head of {path} is")
    return lines[-1]
