"""Connect to Ray: a private one on this machine, or a cluster by its address.

Nothing here imports Ray before it is used.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiring.errors import ClusterError
from workers import processes
from workers.access import find_token, node_address, split_address
from workers.nodes import short_directory
from workers.probe import NodeInfo, describe, query

PACKAGES = ("wiring", "search", "workers")
EXCLUDES = ("__pycache__/", "*.py[cod]", "*.orig", "*.log", ".DS_Store")
_TOKEN_KEYS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED")


@dataclass(frozen=True)
class ClusterInfo:
    """A connection: where, whether the cluster is private to this process, and its nodes."""

    address: str
    private: bool
    nodes: tuple[NodeInfo, ...]
    seconds: float

    @property
    def alive(self) -> tuple[NodeInfo, ...]:
        return tuple(node for node in self.nodes if node.alive)

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.alive)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.alive)


@dataclass
class _Connection:
    """What `disconnect` must undo."""

    environment: dict[str, str | None]
    directory: Path | None = None


_connection: _Connection | None = None


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    token_file: Path | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> ClusterInfo:
    """Connect this process to Ray.

    address None starts a Ray of its own on loopback, with a random token that only its processes
    know, `num_cpus` wide (None: all), which ends with this process. Otherwise the cluster at
    `address` is joined as a driver; the token comes from `token_file`, RAY_AUTH_TOKEN_PATH,
    RAY_AUTH_TOKEN or ~/.wiring/cluster/token, in this order, and workers are sent this
    installation's `wiring`, `search` and `workers` packages, besides `runtime_env`.
    Call it in a thread that lives until `disconnect`: on Linux a private Ray ends with the
    thread that started it. Raises ClusterError in one sentence.
    """
    global _connection
    if _connection is not None:
        raise ClusterError("this process is already connected to Ray; disconnect first")
    start = time.monotonic()
    if address is None:
        _connection, nodes = _start_private(num_cpus, runtime_env)
        return ClusterInfo("local", True, nodes, time.monotonic() - start)
    if num_cpus is not None:
        raise ClusterError(f"num_cpus is for a private Ray, not for the cluster at {address}")
    secret = find_token(token_file)
    nodes = tuple(query(address, secret=secret))
    if not any(node.alive and _is_local(node.host) for node in nodes):
        raise ClusterError(
            f"this machine is no node of the cluster at {address}: "
            f"run 'wiring cluster start --address {address} --num-cpus 0' here first"
        )
    _connection = _join(address, secret, runtime_env)
    return ClusterInfo(address, False, nodes, time.monotonic() - start)


def disconnect() -> None:
    """End the connection, and the private Ray where there is one. Does nothing without one."""
    global _connection
    if _connection is None:
        return
    import ray

    connection, _connection = _connection, None
    ray.shutdown()
    _restore(connection.environment)
    if connection.directory is not None:
        shutil.rmtree(connection.directory, ignore_errors=True)


def packages(runtime_env: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A runtime environment that brings our packages to workers on other machines."""
    result = dict(runtime_env or {})
    result["py_modules"] = [*result.get("py_modules", []), *map(str, _package_paths())]
    result["excludes"] = [*result.get("excludes", []), *EXCLUDES]
    return result


def _start_private(
    num_cpus: int | None, runtime_env: Mapping[str, Any] | None
) -> tuple[_Connection, tuple[NodeInfo, ...]]:
    directory = short_directory()
    _sweep(directory.parent)
    owner = processes.find(os.getpid())
    assert owner is not None
    (directory / "owner").write_text(owner.identity)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = _apply(secret)
    ray: Any = importlib.import_module("ray")
    try:
        _reload_token()
        # Ray puts the driver's current directory first on its workers' path. In a checkout those
        # would be the sources, without compiled kernels, in place of the packages running here.
        with contextlib.chdir(directory):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=_store_bytes(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=dict(runtime_env) if runtime_env else None,
                _temp_dir=str(directory / "ray"),
                _node_ip_address=node_address("127.0.0.1"),
            )
        nodes = tuple(describe(ray.nodes()))
    except Exception as error:
        ray.shutdown()
        _restore(before)
        shutil.rmtree(directory, ignore_errors=True)
        raise ClusterError(f"Ray did not start on this machine: {_one_line(error)}") from error
    return _Connection(before, directory), nodes


def _join(
    address: str, secret: Mapping[str, str], runtime_env: Mapping[str, Any] | None
) -> _Connection:
    host, port = split_address(address)
    before = _apply(secret)
    import ray

    try:
        _reload_token()
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            ray.init(
                address=f"{node_address(host)}:{port}",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=packages(runtime_env),
            )
    except Exception as error:
        ray.shutdown()
        _restore(before)
        raise ClusterError(f"cannot connect to Ray at {address}: {_one_line(error)}") from error
    return _Connection(before)


def _apply(secret: Mapping[str, str]) -> dict[str, str | None]:
    before = {key: os.environ.get(key) for key in _TOKEN_KEYS}
    for key in _TOKEN_KEYS:
        os.environ.pop(key, None)
    os.environ.update(secret, RAY_USAGE_STATS_ENABLED="0")
    return before


def _restore(before: Mapping[str, str | None]) -> None:
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


def _reload_token() -> None:
    # Ray reads mode and token once a process; both differ from one connection to the next.
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _sweep(place: Path) -> None:
    """Remove the directories of private Rays whose owner was killed."""
    living = {process.identity for process in processes.running()}
    machines = {identity.split(":")[0] for identity in living}
    for owner in place.glob("wiring-*/owner"):
        with contextlib.suppress(OSError):
            identity = owner.read_text()
            if identity.split(":")[0] in machines and identity not in living:
                shutil.rmtree(owner.parent, ignore_errors=True)


def _store_bytes() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(100 * 2**20, min(2 * 2**30, memory // 5))


def _package_paths() -> Iterator[Path]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ClusterError(f"the package '{name}' is not installed, workers cannot be sent it")
        yield Path(next(iter(spec.submodule_search_locations))).resolve()


def _is_local(host: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"
