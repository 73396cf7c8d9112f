"""Tracking stores from outside: their URIs, whether one answers, and serving one's pages.

Nothing here imports MLflow, which takes seconds: the server is a process of its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from wiring.errors import TrackingError

EXPERIMENT = "wiring"
REACH_TIMEOUT_S = 4.0
START_DEADLINE_S = 120.0
END_DEADLINE_S = 5.0
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
EXAMPLE = "a tracking URI is like http://host:5000 or sqlite:////path/mlflow.db"


def default_uri(runs: Path) -> str:
    """The store where no other is named: SQLite in the directory of all studies."""
    return f"sqlite:///{runs.absolute() / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """The URI without user and password, fit for logs and files."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def tracking_reachable(uri: str) -> None:
    """Raise TrackingError, one sentence, where the URI is malformed or nothing answers there.

    Takes 5 s at most. A store behind a plug-in of MLflow, or Databricks, is taken at its word.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if scheme == "sqlite":
        _check_sqlite(uri, parts)
    elif scheme in ("http", "https"):
        _check_server(uri, parts)
    elif scheme in DATABASE_PORTS:
        _check_port(uri, parts, DATABASE_PORTS[scheme])
    elif scheme in ("", "file"):
        raise TrackingError(f"MLflow keeps no runs in plain files, got '{uri}'; {EXAMPLE}")
    elif uri.split(":")[0] not in ("databricks", "databricks-uc") and not _plugin(scheme):
        raise TrackingError(f"no tracking store has the scheme '{scheme}', got '{uri}'; {EXAMPLE}")


def _plugin(scheme: str) -> bool:
    stores = metadata.entry_points(group="mlflow.tracking_store")
    return any(store.name == scheme for store in stores)


def _check_sqlite(uri: str, parts: SplitResult) -> None:
    if parts.netloc or not parts.path.strip("/"):
        raise TrackingError(f"a SQLite URI has three slashes and a path, got '{uri}'; {EXAMPLE}")
    path = Path(unquote(parts.path[1:])).absolute()
    if not path.parent.is_dir():
        raise TrackingError(f"tracking store '{uri}': there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise TrackingError(f"tracking store '{uri}': {path} cannot be written")
    if path.is_dir():
        raise TrackingError(f"tracking store '{uri}': {path} is a directory, not a database")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(15) != b"SQLite format 3":
                raise TrackingError(f"tracking store '{uri}': {path} is not a SQLite database")


def _check_server(uri: str, parts: SplitResult) -> None:
    shown = without_secrets(uri)
    try:
        if not parts.hostname or parts.port == 0:
            raise ValueError("it names no host")
    except ValueError as error:
        raise TrackingError(f"tracking URI '{shown}' is malformed: {error}; {EXAMPLE}") from None
    request = urllib.request.Request(
        without_secrets(uri).rstrip("/") + "/api/2.0/mlflow/experiments/search?max_results=1",
        headers=_credentials(parts),
    )
    try:
        with urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S) as answer:
            if b"{" not in answer.read(4096):
                raise TrackingError(f"'{shown}' answers, but is no MLflow server")
    except urllib.error.HTTPError as error:
        other_login = {"MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"} & set(os.environ)
        if error.code in (401, 403) and other_login:
            return  # only MLflow itself can log in there
        what = {401: "asks for a login", 403: "refuses us", 404: "is no MLflow server"}
        said = what.get(error.code, "has a fault")
        raise TrackingError(f"tracking server '{shown}' {said} (HTTP {error.code})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(f"tracking server '{shown}' cannot be reached: {reason}") from None


def _credentials(parts: SplitResult) -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or parts.username
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or parts.password
    if user and password:
        plain = f"{unquote(user)}:{unquote(password)}".encode()
        return {"Authorization": f"Basic {base64.b64encode(plain).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_port(uri: str, parts: SplitResult, usual: int) -> None:
    shown = without_secrets(uri)
    try:
        address = (parts.hostname or "localhost", parts.port or usual)
        socket.create_connection(address, timeout=REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise TrackingError(f"tracking database '{shown}' cannot be reached: {error}") from None


def serve_ui(runs: Path, uri: str | None, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Serve the pages of a store until Ctrl-C or SIGTERM; prints where they are.

    Raises TrackingError if there is nothing to serve, the port is taken, or the server ends.
    """
    if uri is not None and urlsplit(uri).scheme in ("http", "https"):
        tracking_reachable(uri)
        print(f"this store is served already, at {without_secrets(uri)}", flush=True)
        return
    if uri is None and not (runs / "mlflow.db").exists():
        raise TrackingError(f"no study under {runs} has been tracked yet: there is no mlflow.db")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise TrackingError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with server(uri or default_uri(runs), runs / "mlartifacts", host, port) as process:
            print(f"MLflow: {_studies_page(host, port)}   (Ctrl-C ends it)", flush=True)
            process.wait()
        raise TrackingError(f"the MLflow server ended by itself with code {process.returncode}")
    except KeyboardInterrupt:
        print("MLflow has ended", flush=True)
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def server(uri: str, artifacts: Path, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server that answers; its whole process group ends with the block.

    Its output goes to standard error. Raises TrackingError if it does not come up.
    """
    names = {"127.0.0.1", "localhost", host, socket.gethostname()}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--default-artifact-root", artifacts.absolute().as_uri()]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    command += ["--allowed-hosts", ",".join(sorted(f"{name}:{port}" for name in names))]
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **os.environ,
    }
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=2)
    try:
        _wait_until_up(process, host, port)
        yield process
    finally:
        _end_group(process)


def _studies_page(host: str, port: int) -> str:
    """Where the studies are listed; without the last part MLflow shows its tools for LLMs."""
    ask = f"http://{_loopback(host)}:{port}/api/2.0/mlflow/experiments/get-by-name"
    page = "experiments"
    with (
        contextlib.suppress(OSError, ValueError, KeyError),
        urllib.request.urlopen(f"{ask}?experiment_name={EXPERIMENT}", timeout=5) as answer,
    ):
        page += f"/{json.load(answer)['experiment']['experiment_id']}"
    return f"http://{host}:{port}/#/{page}?workflowType=machine_learning"


def _loopback(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _wait_until_up(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TrackingError(f"the MLflow server ended with code {process.returncode}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{_loopback(host)}:{port}/health", timeout=1).close()
            return
        time.sleep(0.2)
    raise TrackingError(f"the MLflow server did not answer within {START_DEADLINE_S:.0f} s")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_DEADLINE_S)
            if number == signal.SIGKILL:
                return
