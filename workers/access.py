"""Where a cluster is reached and what opens it: addresses, tokens, the environment of Ray."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import sys
from pathlib import Path

from wiring.errors import ClusterError

# A lost node is noticed in about 10 s instead of a minute.
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def default_directory() -> Path:
    """Where this user's cluster state lies: `~/.wiring/cluster`."""
    return Path.home() / ".wiring" / "cluster"


def is_loopback(host: str) -> bool:
    return host in _LOOPBACK or host.startswith("127.")


def node_address(host: str) -> str:
    """The address Ray is given for `host`.

    Ray replaces 127.0.0.1 by the address of a network card; 127.0.0.2, loopback as well on
    Linux, it leaves alone, which also works on a machine without a network.
    """
    if host in _LOOPBACK:
        return "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
    return host


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT` as a pair. Raises ClusterError where it is not one."""
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise ClusterError(f"a cluster address is HOST:PORT, got {address!r}")
    return host, int(port)


def check_reachable(address: str, *, seconds: float = 3.0) -> None:
    """Raises ClusterError where nothing answers TCP at `address` in time."""
    host, port = split_address(address)
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        why = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ClusterError(f"nothing answers at the cluster address {address}: {why}") from None


def make_token(path: Path) -> Path:
    """The token file at `path`, created with mode 0600 where missing.

    Raises ClusterError where it exists and others may read it.
    """
    path = path.expanduser().absolute()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return check_token(path)
    except OSError as error:
        raise ClusterError(f"cannot write the token file {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def check_token(path: Path) -> Path:
    """An existing, private, non-empty token file, as an absolute path; else ClusterError."""
    path = path.expanduser().absolute()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text().strip()
    except OSError as error:
        raise ClusterError(f"cannot read the token file {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ClusterError(f"a token file must be private, but {path} has mode {mode:04o}")
    if not text:
        raise ClusterError(f"a token file must hold a token, but {path} is empty")
    return path


def find_token(token_file: Path | None = None) -> dict[str, str]:
    """Ray's variables for the token to use; mode `disabled` where there is none.

    Raises ClusterError where the file that was named cannot be used.
    """
    if token_file is None and os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return {"RAY_AUTH_MODE": "disabled"}
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    default = default_directory() / "token"
    if token_file is not None:
        path = check_token(token_file)
    elif named:
        path = check_token(Path(named))
    elif os.environ.get("RAY_AUTH_TOKEN"):
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    elif default.exists():
        path = check_token(default)
    else:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def environment(token_file: Path | None) -> dict[str, str]:
    """The environment of Ray's processes: this one's, without what would override the token."""
    drop = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    base = {key: value for key, value in os.environ.items() if key not in drop}
    secret = {"RAY_AUTH_MODE": "disabled"}
    if token_file is not None:
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return {**base, **HEALTH, **secret, "RAY_USAGE_STATS_ENABLED": "0"}
