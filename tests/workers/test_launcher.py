"""Launcher files: what is checked before Ray's launcher runs, and the commands that are built."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from wiring.errors import ClusterError, ConfigError
from workers import launcher
from workers.launchfile import read_launch, token_of
from workers.probe import NodeInfo

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "wiring_cluster").write_text("key")
    return tmp_path


def write(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The example file with some keys changed; None removes one."""
    data = {**yaml.safe_load(EXAMPLE.read_text()), **change}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return path


def test_the_example_is_valid_and_makes_a_private_token(home: Path) -> None:
    launch = read_launch(EXAMPLE)
    token = token_of(launch, EXAMPLE)
    assert launch.hosts == ("192.168.1.10", "192.168.1.11", "192.168.1.12")
    assert (launch.expected, launch.port) == (3, 6379)
    assert token == home / ".wiring/cluster/token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cluster_name": None}, "key 'cluster_name' is missing"),
        ({"cluster_name": "a b"}, "cluster_name: string should match pattern"),
        ({"provider": None}, "key 'provider' is missing"),
        ({"provider": {"type": "local"}}, "provider 'local' needs head_ip and worker_ips"),
        (
            {"provider": {"type": "local", "head_ip": "a", "worker_ips": ["b", "a"]}},
            r"each host stands once in head_ip and worker_ips, not \['a'\]",
        ),
        ({"auth": {}}, "key 'auth.ssh_user' is missing"),
        (
            {"auth": {"ssh_user": "me", "ssh_private_key": "/no/key"}},
            "auth.ssh_private_key: there is no file /no/key",
        ),
        ({"min_workers": 5}, "min_workers is 5, but worker_ips has 2"),
        ({"head_start_ray_commands": None}, "key 'head_start_ray_commands' is missing"),
        ({"worker_start_ray_commands": []}, "worker_start_ray_commands: tuple should have"),
    ],
)
def test_a_faulty_file_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_launch(write(tmp_path, change))


@pytest.mark.parametrize(("text", "sentence"), [("a: [", "is not YAML"), ("- 1", "got list")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_launch(path)


OPEN = ["ray start --head --port=6379"]
SECRET = ["RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/t ray start --address=$RAY_HEAD_IP:6379"]


def test_starting_ray_open_must_be_asked_for(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"head_start_ray_commands": OPEN, "worker_start_ray_commands": ["ray start"]}
    )
    with pytest.raises(ConfigError, match=r"start Ray without RAY_AUTH_MODE=token.*--no-token"):
        launcher.up(path, say=print)


def test_a_token_for_some_nodes_only_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"head_start_ray_commands": OPEN, "worker_start_ray_commands": SECRET})
    with pytest.raises(ConfigError, match="one and the same token file"):
        token_of(read_launch(path), path)


def test_a_token_that_is_not_sent_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"file_mounts": {"~/elsewhere": "~/.ssh/wiring_cluster"}})
    with pytest.raises(ConfigError, match="is not sent to the hosts"):
        token_of(read_launch(path), path)


def test_the_launchers_commands_are_those_of_this_interpreter(tmp_path: Path) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    assert launcher.up_command(tmp_path)[:4] == [ray, "up", "-y", "--no-config-cache"]
    assert launcher.down_command(tmp_path)[:3] == [ray, "down", "-y"]


def test_ssh_neither_asks_nor_waits(home: Path) -> None:
    command = launcher.ssh_command(read_launch(EXAMPLE), "192.168.1.11", "echo 'a b'")
    assert command[0] == "ssh"
    assert "BatchMode=yes" in command
    assert "ConnectTimeout=5" in command
    assert command[command.index("-i") + 1] == str(home / ".ssh/wiring_cluster")
    assert command[-2] == "me@192.168.1.11"
    assert subprocess.check_output(["sh", "-c", command[-1]], text=True) == "a b\n"


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: str, ray: str = "exit 0") -> None:
    """Replace ssh, rsync and ray by shell scripts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("ssh", ssh), ("rsync", "exit 0"), ("ray", ray)):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launcher, "ray_command", lambda: str(tools / "ray"))


def test_hosts_that_refuse_are_all_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = 'case "$*" in *192.168.1.11*) exit 0;; esac; echo refused >&2; exit 255'
    fake(tmp_path, monkeypatch, ssh, ray=f"touch {tmp_path}/started")
    with pytest.raises(
        ClusterError, match=r"cannot use as me: 192.168.1.10 \(refused\); 192.168.1.12 \(refused\)"
    ):
        launcher.up(EXAMPLE, say=print)
    assert not (tmp_path / "started").exists()


def test_up_fails_when_the_launcher_passes_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "exit 0", ray="echo waiting for SSH; exec sleep 60")
    with pytest.raises(ClusterError, match="'ray up' passed its deadline, last saying: waiting"):
        launcher.up(EXAMPLE, seconds=1, say=print)


def test_up_fails_when_fewer_nodes_live_than_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "exit 0", ray="echo all well")
    head = NodeInfo(id="1", host="192.168.1.10", head=True, alive=True)
    lost = NodeInfo(id="2", host="192.168.1.11", head=False, alive=False)
    monkeypatch.setattr(launcher, "query", lambda address, secret: [head, lost])
    said: list[str] = []
    with pytest.raises(
        ClusterError, match=r"1 of 3 nodes are alive .* missing 192.168.1.11, 192.168.1.12"
    ):
        launcher.up(EXAMPLE, seconds=1, say=said.append)
    assert "all well" in said


def test_down_does_not_believe_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = 'case "$*" in *192.168.1.11*) echo raylet 77;; *1.12*) exit 255;; esac; echo checked'
    fake(tmp_path, monkeypatch, ssh, ray="echo No nodes remaining")
    with pytest.raises(ClusterError, match=r"raylets still run on 192.168.1.11 \(pid 77\)"):
        launcher.down(EXAMPLE, seconds=2, say=print)


def test_down_says_which_hosts_could_not_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = 'case "$*" in *192.168.1.12*) exit 255;; esac; echo checked'
    fake(tmp_path, monkeypatch, ssh)
    with pytest.raises(ClusterError, match=r"could not check for raylets on 192.168.1.12"):
        launcher.down(EXAMPLE, seconds=2, say=print)


def test_down_runs_the_files_own_stop_command_on_every_host_head_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    fake(tmp_path, monkeypatch, f'echo "$*" >> {log}; echo checked', ray=f"echo down >> {log}")
    result = launcher.down(EXAMPLE, seconds=5, say=print)
    lines = log.read_text().splitlines()
    head, first, second, ray, *checks = lines
    assert "192.168.1.10" in head
    assert {host for host in result.hosts[1:] if host in first + second} == set(result.hosts[1:])
    assert all("~/wiring-env/bin/ray stop" in line for line in (head, first, second))
    assert ray == "down"
    assert len(checks) == 3
