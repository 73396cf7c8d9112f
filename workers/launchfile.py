"""The file for Ray's launcher: what of it is checked before anything is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, model_validator

from wiring.config import parse
from wiring.errors import ConfigError
from workers.access import make_token
from workers.nodes import DEFAULT_PORT


class _Section(BaseModel):
    # Ray's own keys pass through: its launcher judges them.
    model_config = ConfigDict(extra="allow", frozen=True)


class Provider(_Section):
    type: str
    head_ip: str | None = None
    worker_ips: tuple[str, ...] | None = None


class Auth(_Section):
    ssh_user: str = Field(min_length=1)
    ssh_private_key: Path | None = None
    ssh_proxy_command: str | None = None


class Launch(_Section):
    """The part of a launcher file that is checked before anything is started."""

    cluster_name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    provider: Provider
    auth: Auth
    min_workers: int | None = Field(default=None, ge=0)
    max_workers: int | None = Field(default=None, ge=0)
    file_mounts: dict[str, Path] = {}
    head_start_ray_commands: tuple[str, ...] = Field(min_length=1)
    worker_start_ray_commands: tuple[str, ...] = Field(min_length=1)
    available_node_types: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _agree(self) -> Launch:
        if self.provider.type == "local":
            hosts = self.provider.worker_ips
            if not self.provider.head_ip or hosts is None:
                raise ValueError("provider 'local' needs head_ip and worker_ips")
            every = [self.provider.head_ip, *hosts]
            double = sorted({host for host in every if every.count(host) > 1})
            if double:
                raise ValueError(f"each host stands once in head_ip and worker_ips, not {double}")
            if (self.min_workers or 0) > len(hosts):
                raise ValueError(
                    f"min_workers is {self.min_workers}, but worker_ips has {len(hosts)}"
                )
        return self

    @property
    def hosts(self) -> tuple[str, ...]:
        """Head first; empty where a cloud chooses them."""
        if self.provider.head_ip is None:
            return ()
        return (self.provider.head_ip, *(self.provider.worker_ips or ()))

    @property
    def expected(self) -> int:
        """How many nodes must be alive for `up` to have worked, the head included."""
        if self.provider.type == "local":
            workers = len(self.provider.worker_ips or ())
            return 1 + (workers if self.min_workers is None else self.min_workers)
        return 1 + sum(
            int(kind.get("min_workers", 0)) for kind in self.available_node_types.values()
        )

    @property
    def port(self) -> int:
        found = re.search(r"--port[= ](\d+)", " ".join(self.head_start_ray_commands))
        return int(found.group(1)) if found else DEFAULT_PORT


def read_launch(path: Path) -> Launch:
    """Read and check a launcher file. Raises ConfigError in one sentence naming file and key."""
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(
            f"{path}: is not YAML{where}: {getattr(error, 'problem', error)}"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys, got {type(data).__name__}")
    launch = parse(Launch, data, where=str(path))
    key = launch.auth.ssh_private_key
    if key is not None and not key.expanduser().is_file():
        raise ConfigError(f"{path}: auth.ssh_private_key: there is no file {key}")
    return launch


def token_of(launch: Launch, path: Path) -> Path | None:
    """The local token file that a launcher file sends to its hosts; None where it starts Ray open.

    It is created with mode 0600 where missing. Raises ConfigError where only some commands ask
    for a token, or the file they name is not among the file mounts; ClusterError where others
    may read the local file.
    """
    found: set[str | None] = set()
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [c for c in getattr(launch, key) if "ray start" in c]
        if not commands:
            raise ConfigError(f"{path}: {key}: no command runs 'ray start'")
        for command in commands:
            match = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", command)
            if "RAY_AUTH_MODE=token" in command and not match:
                raise ConfigError(f"{path}: {key}: RAY_AUTH_MODE=token needs RAY_AUTH_TOKEN_PATH")
            found.add(match.group(1) if match and "RAY_AUTH_MODE=token" in command else None)
    if found == {None}:
        return None
    if len(found) > 1:
        raise ConfigError(f"{path}: every 'ray start' must use one and the same token file")
    remote = str(found.pop())
    same = {remote, remote.replace("$HOME", "~")}
    local = next((value for key, value in launch.file_mounts.items() if key in same), None)
    if local is None:
        raise ConfigError(f"{path}: file_mounts: the token file {remote} is not sent to the hosts")
    return make_token(local)
