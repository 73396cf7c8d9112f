"""Nodes on this machine: started, counted, broken, ended; what connecting says when it fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.cluster import app
from tests.cluster_tools import LocalCluster
from wiring.errors import ClusterError
from workers import access, cluster, nodes, probe, processes


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wc-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def no_ambient_token(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(place))


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, cpus=1) as started:
        yield started


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.ray
def test_status_counts_every_node_and_its_cpus(local: LocalCluster) -> None:
    summary = json.loads(command("status", "--dir", local.directory, "--json").stdout)
    assert (summary["alive"], summary["dead"]) == (3, 0)
    assert summary["cpus"] == {"total": 3.0, "free": 3.0}
    assert [node["head"] for node in summary["nodes"]] == [True, False, False]


@pytest.mark.ray
def test_a_driver_runs_shipped_code_without_junk_on_every_node(local: LocalCluster) -> None:
    # The driver starts elsewhere, since Ray's workers on one host also look where it was started.
    script = f"""
import os, ray, sys
from pathlib import Path
from workers.cluster import connect, disconnect
info = connect({local.address!r}, token_file=Path({str(local.token)!r}))
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    import search, wiring.errors, workers
    import time; time.sleep(1)
    files = [Path(m.__file__) for m in (search, wiring.errors, workers)]
    junk = [str(p) for f in files for p in f.parent.rglob("*.pyc") if "py_modules" not in str(p)]
    return ray.get_runtime_context().get_node_id(), [str(f) for f in files], junk
for node, files, junk in ray.get([where.remote() for _ in range(3)]):
    print(node, all("py_modules_files" in f for f in files), len(junk))
disconnect()
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as elsewhere:
        (Path(elsewhere) / "driver.py").write_text(script)
        done = subprocess.run(
            [sys.executable, "driver.py"], cwd=elsewhere, capture_output=True, text=True, timeout=60
        )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len({node for node, *_ in rows}) == 3, done.stderr
    assert [row[1:] for row in rows] == [["True", "0"]] * 3


@pytest.mark.ray
def test_a_wrong_token_is_named_by_its_file(local: LocalCluster, place: Path) -> None:
    wrong = access.make_token(place / "other")
    with pytest.raises(ClusterError, match=f"refused the token from {wrong}"):
        cluster.connect(local.address, token_file=wrong)


@pytest.mark.ray
def test_a_missing_token_says_how_to_give_one(local: LocalCluster) -> None:
    with pytest.raises(ClusterError, match=r"asks for a token and none was given: .*--token-file"):
        cluster.connect(local.address)


@pytest.mark.ray
def test_a_second_head_from_one_directory_is_refused(local: LocalCluster) -> None:
    with pytest.raises(ClusterError, match=f"already runs at {local.address}"):
        nodes.start_head(local.directory, port=0)


@pytest.mark.ray
def test_the_token_file_and_rays_directories_are_closed_to_others(local: LocalCluster) -> None:
    assert stat.S_IMODE(local.token.stat().st_mode) == 0o600
    for node in local.started:
        assert stat.S_IMODE(node.temp_dir.stat().st_mode) == 0o700


@pytest.mark.ray
@pytest.mark.fault
def test_a_killed_raylet_is_counted_dead_and_stop_ends_all_that_is_left() -> None:
    with LocalCluster(nodes=3, cpus=1) as own:
        secret = access.find_token(own.token)
        own.kill_raylet(2)

        def alive() -> int:
            return sum(node.alive for node in probe.query(own.address, secret=secret))

        assert processes.wait_until(lambda: alive() == 2, seconds=60, every=0.5)
        summary = json.loads(command("status", "--dir", own.directory, "--json").stdout)
        assert (summary["alive"], summary["dead"]) == (2, 1)
        started = [process for node in own.started for process in node.running()]
        assert len(started) >= 8
        report = json.loads(command("stop", "--dir", own.directory, "--json").stdout)
        assert report == {"nodes": 3, "processes": len(started)}
        assert processes.gone(started)
        assert nodes.load(own.directory) == []
        assert not any(node.temp_dir.exists() for node in own.started)


@pytest.mark.ray
def test_a_private_ray_has_its_own_token_and_leaves_nothing(place: Path) -> None:
    # In a process of its own: this one may hold the session's Ray.
    script = """
import os
from pathlib import Path
from workers.cluster import connect, disconnect
tokens = []
for _ in range(2):
    info = connect(num_cpus=1)
    import ray
    @ray.remote
    def token(): return os.environ["RAY_AUTH_TOKEN"]
    tokens.append(ray.get(token.remote()))
    directory = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
    print(info.private, info.cpus, len(tokens[-1]), oct(directory.stat().st_mode & 0o777))
    disconnect()
    print(directory.exists(), "RAY_AUTH_TOKEN" in os.environ)
print(len(set(tokens)), (Path.home() / ".ray").exists())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=90
    )
    once = ["True 1.0 64 0o700", "False False"]
    assert done.stdout.splitlines() == [*once, *once, "2 False"], done.stderr


@pytest.mark.ray
def test_workers_run_the_packages_of_the_driver_not_those_where_it_was_started(
    place: Path,
) -> None:
    (place / "wiring").mkdir()
    (place / "wiring" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    script = """
import sys
from workers.cluster import connect, disconnect
connect(num_cpus=1)
import ray, wiring
@ray.remote
def where():
    import wiring
    return wiring.__file__
print(ray.get(where.remote()) == wiring.__file__)
disconnect()
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stdout.splitlines() == ["True"], done.stderr


def test_a_wrong_address_fails_before_ray_is_asked() -> None:
    with socket.socket() as probe:  # bound, not listening
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"nothing answers at the cluster address {address}"):
            cluster.connect(address)


def test_something_that_is_no_ray_head_is_given_a_deadline() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="did not answer within 2 s"):
            probe.query(address, seconds=2.0)


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "ray://host:1", "host:70000"])
def test_an_address_that_is_not_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="a cluster address is HOST:PORT"):
        cluster.connect(address)


def test_a_token_file_that_others_may_read_is_refused(place: Path) -> None:
    path = access.make_token(place / "token")
    path.chmod(0o644)
    with pytest.raises(ClusterError, match=r"must be private, but .* has mode 0644"):
        access.find_token(path)


def test_an_existing_token_is_kept(place: Path) -> None:
    path = access.make_token(place / "token")
    text = path.read_text()
    assert access.make_token(path).read_text() == text
    assert len(text) == 64


def test_tokens_are_looked_for_in_the_order_that_is_documented(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access.find_token() == {"RAY_AUTH_MODE": "disabled"}
    default = access.make_token(place / ".wiring" / "cluster" / "token")
    assert access.find_token()["RAY_AUTH_TOKEN_PATH"] == str(default)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert access.find_token() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}
    named = access.make_token(place / "named")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert access.find_token()["RAY_AUTH_TOKEN_PATH"] == str(named)
    asked = access.make_token(place / "asked")
    assert access.find_token(asked)["RAY_AUTH_TOKEN_PATH"] == str(asked)


def test_rays_environment_drops_what_would_override_the_token(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    made = access.environment(place / "token")
    assert made["RAY_AUTH_TOKEN_PATH"] == str(place / "token")
    assert made["RAY_AUTH_MODE"] == "token"
    assert not {"RAY_AUTH_TOKEN", "RAY_ADDRESS"} & made.keys()
    assert made["RAY_health_check_failure_threshold"] == "3"


def test_a_taken_port_is_named(place: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} cannot be used"):
            nodes.start_head(place, port=port)


def test_start_wants_either_a_head_or_an_address(place: Path) -> None:
    for arguments in ((), ("--head", "--address", "127.0.0.1:1")):
        with pytest.raises(ClusterError, match="give either --head or --address"):
            command("start", *arguments, "--dir", place)


def test_a_damaged_record_is_named(place: Path) -> None:
    (place / "nodes").mkdir()
    (place / "nodes" / "7.json").write_text('{"version": 1, "role": "head"')
    with pytest.raises(ClusterError, match=r"7\.json is damaged"):
        command("stop", "--dir", place)


def test_stop_spares_a_process_that_got_a_recorded_number(place: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = processes.find(stranger.pid)
        assert found is not None
        members = (nodes.Member(pid=found.pid, identity="1:1:1", command="raylet"),)
        record = nodes.Node(
            role="worker",
            address="127.0.0.1:6379",
            host=None,
            session=found.session,
            temp_dir=place / "gone",
            token_file=None,
            members=members,
        )
        (place / "nodes").mkdir()
        (place / "nodes" / "1.json").write_text(json.dumps(record.to_dict()))
        assert nodes.stop(place) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_members_are_the_session_and_its_descendants() -> None:
    child = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    leader = subprocess.Popen(
        [sys.executable, "-c", f"{child}; print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout is not None
    leader.stdout.readline()
    found = processes.find(leader.pid)
    assert found is not None
    group = processes.members(leader.pid, [found.identity])
    assert processes.members(leader.pid, ["another"]) == []
    processes.send(group, signal.SIGKILL)
    leader.communicate()
    assert len(group) == 2
    assert processes.wait_until(lambda: processes.gone(group), seconds=10)


def test_a_process_is_seen_the_same_way_by_ps(monkeypatch: pytest.MonkeyPatch) -> None:
    here = processes.find(os.getpid())
    monkeypatch.setattr(processes, "_BOOT_ID", Path("/nonexistent"))
    try:
        there = processes.find(os.getpid())
    except FileNotFoundError:
        pytest.skip("there is no ps on this machine")
    assert here is not None
    assert there is not None
    assert (here.pid, here.parent, here.session) == (there.pid, there.parent, there.session)
