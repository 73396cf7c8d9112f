"""Ask a cluster's head for its nodes without connecting to Ray.

The question is put by a process of its own (`python -m workers.probe HOST:PORT`), since a GCS
that dies or refuses a token can hold, and even abort, the process that asks. No node of the
cluster need run on this machine.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wiring.config import Config
from wiring.errors import ClusterError
from workers.access import check_reachable, environment, find_token

_REFUSED = 3  # exit code where the token was refused


class NodeInfo(Config):
    """One node as the head knows it; a dead one has no resources."""

    id: str
    host: str
    head: bool
    alive: bool
    cpus: float = 0.0
    cpus_free: float = 0.0
    gpus: float = 0.0
    gpus_free: float = 0.0
    reason: str = ""


def query(
    address: str, *, secret: Mapping[str, str] | None = None, seconds: float = 20.0
) -> list[NodeInfo]:
    """Ask the head at `address` for its nodes, the head first, without connecting to Ray.

    `secret` comes from `find_token`. Needs no node on this machine; takes about 0.4 s. Raises
    ClusterError where nothing answers, the token is refused or `seconds` pass.
    """
    check_reachable(address)
    secret = find_token() if secret is None else secret
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.probe", address],
            env={**environment(None), **secret, "PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"the cluster at {address} accepts connections but did not answer within {seconds:g} s"
        ) from None
    if done.returncode == _REFUSED:
        raise ClusterError(_refusal(address, secret))
    if done.returncode != 0:
        lines = (done.stderr.strip() or "no message").splitlines()
        raise ClusterError(f"what answers at {address} is no Ray head this Ray knows: {lines[-1]}")
    nodes = [NodeInfo(**node) for node in json.loads(done.stdout)]
    return sorted(nodes, key=lambda node: (not node.head, not node.alive, node.host))


def describe(
    table: list[dict[str, Any]], free: Mapping[str, Any] | None = None
) -> Iterator[NodeInfo]:
    for entry in table:
        total = entry.get("Resources", {})
        left = total if free is None else free.get(entry["NodeID"], {})
        alive = bool(entry["Alive"])
        yield NodeInfo(
            id=entry["NodeID"],
            host=entry["NodeManagerAddress"],
            head="node:__internal_head__" in total,
            alive=alive,
            cpus=total.get("CPU", 0.0) if alive else 0.0,
            cpus_free=left.get("CPU", 0.0) if alive else 0.0,
            gpus=total.get("GPU", 0.0) if alive else 0.0,
            gpus_free=left.get("GPU", 0.0) if alive else 0.0,
            reason=str(entry.get("DeathReasonMessage") or ""),
        )


def _refusal(address: str, secret: Mapping[str, str]) -> str:
    if secret["RAY_AUTH_MODE"] == "disabled":
        return (
            f"the cluster at {address} asks for a token and none was given: name its file with "
            f"--token-file or RAY_AUTH_TOKEN_PATH"
        )
    source = secret.get("RAY_AUTH_TOKEN_PATH", "the variable RAY_AUTH_TOKEN")
    return f"the cluster at {address} refused the token from {source}"


def _python_path() -> str:
    # The probe must find this package also where it was never installed.
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))


def _probe(address: str) -> int:
    """Print the nodes of the head at `address` as JSON; the exit code says what went wrong."""
    from ray.exceptions import AuthenticationError

    # Ray has no public way to ask a head from outside its cluster.
    raylet: Any = importlib.import_module("ray._raylet")
    private: Any = importlib.import_module("ray._private.state")
    try:
        raylet.GcsClient(address=address).get_all_node_info(timeout=10)
    except AuthenticationError:
        return _REFUSED
    state = private.GlobalState()
    state._initialize_global_state(
        raylet.GcsClientOptions.create(
            address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
        )
    )
    nodes = describe(state.node_table(), state.available_resources_per_node())
    print(json.dumps([node.to_dict() for node in nodes]))
    return 0


if __name__ == "__main__":
    sys.exit(_probe(sys.argv[1]))
