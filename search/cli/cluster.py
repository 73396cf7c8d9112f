"""`wiring cluster`: start, status, stop on this machine; up and down on many."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiring.errors import ClusterError

if TYPE_CHECKING:
    from workers.probe import NodeInfo

app = typer.Typer(
    name="cluster",
    help="Ray clusters: this machine's nodes, or many machines through Ray's launcher.",
    no_args_is_help=True,
)

Directory = Annotated[
    Path | None,
    typer.Option("--dir", help="State of this machine's nodes (default: ~/.wiring/cluster)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON on stdout.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="The cluster's token (default: 'token' in --dir).")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Ray launcher file.")]


@app.command()
def start(
    ray_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- RAY_OPTIONS]", help="After --: options for 'ray start' as they are."
        ),
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Start a new cluster here.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Join the cluster whose head is at HOST:PORT.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address other nodes reach this one by (head: loopback if not given)."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The head's port; 0: any (default: 6379).")
    ] = None,
    num_cpus: Annotated[int | None, typer.Option(min=0, help="CPUs to offer.")] = None,
    num_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs to offer.")] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard/--no-dashboard", help="Ray's dashboard on loopback.")
    ] = True,
    dashboard_port: Annotated[int, typer.Option(min=1024, max=65535)] = 8265,
    token_file: TokenFile = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Open to whoever reaches the ports.")
    ] = False,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Start a head (--head) or join a cluster (--address) with this machine."""
    from workers import nodes
    from workers.access import default_directory, is_loopback

    if head == (address is not None):
        raise ClusterError("give either --head or --address HOST:PORT")
    if address is not None and port is not None:
        raise ClusterError("--port is for --head; a worker takes the port from --address")
    place = directory or default_directory()
    common: dict[str, Any] = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "token_file": token_file,
        "token": not no_token,
        "options": ray_options or (),
    }
    if address is None:
        host = host or "127.0.0.1"
        node = nodes.start_head(
            place,
            host=host,
            port=nodes.DEFAULT_PORT if port is None else port,
            dashboard_port=dashboard_port if dashboard else None,
            **common,
        )
    else:
        node = nodes.start_worker(place, address, host=host, **common)
    if as_json:
        print(json.dumps(node.to_dict()))
        return
    _say(f"[bold]{node.role}[/] runs, cluster at [bold]{node.address}[/]")
    if node.dashboard:
        _say(f"dashboard: {node.dashboard} (loopback)")
    secret = "--no-token" if node.token_file is None else f"--token-file {node.token_file}"
    if node.token_file is not None:
        _say(f"token: {node.token_file} (mode 0600; copy it to every machine that joins)")
    if no_token:
        _warn(
            "no token: whoever reaches this machine's ports can run code here; Ray listens on "
            "every network interface, also for a loopback cluster"
        )
    if not is_loopback(node.host or ""):
        _warn(
            f"reachable from the network at {node.host or 'this machine'}: the GCS, raylets and "
            "workers listen on every interface and their traffic is not encrypted; use a trusted "
            "network or a firewall"
        )
    if node.role == "head":
        _say(f"join it:   wiring cluster start --address {node.address} {secret}")
        flag = "" if node.token_file is None else f" {secret}"
        _say(f"search:    wiring search --address {node.address}{flag} …")
    _say(f"end it:    wiring cluster stop{'' if directory is None else f' --dir {directory}'}")


@app.command()
def status(
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT (default: this machine's cluster).")
    ] = None,
    token_file: TokenFile = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Nodes alive and dead, CPUs and GPUs in all and free."""
    from workers import nodes
    from workers.access import default_directory, find_token
    from workers.probe import query

    place = directory or default_directory()
    recorded = [n for n in nodes.load(place) if address is None or n.address == address]
    if address is None:
        if not recorded:
            raise ClusterError(f"no cluster was started from {place}: give --address HOST:PORT")
        address = recorded[0].address
    if token_file is None and recorded:
        token_file = recorded[0].token_file
    found = query(address, secret=find_token(token_file))
    alive = [node for node in found if node.alive]
    if as_json:
        summary = {
            "address": address,
            "alive": len(alive),
            "dead": len(found) - len(alive),
            "cpus": {"total": sum(n.cpus for n in alive), "free": sum(n.cpus_free for n in alive)},
            "gpus": {"total": sum(n.gpus for n in alive), "free": sum(n.gpus_free for n in alive)},
            "nodes": [node.to_dict() for node in found],
        }
        print(json.dumps(summary))
        return
    _show(address, found)


@app.command()
def stop(directory: Directory = None, as_json: AsJson = False) -> None:
    """End the nodes that 'wiring cluster start' started on this machine, and check it."""
    from workers import nodes
    from workers.access import default_directory

    place = directory or default_directory()
    recorded = nodes.load(place)
    ended = nodes.stop(place)
    if as_json:
        print(json.dumps({"nodes": len(recorded), "processes": ended}))
    elif recorded:
        _say(f"{len(recorded)} nodes ended: {ended} processes, all gone")
    else:
        _say(f"no node was started from {place}")


@app.command()
def up(
    config: ConfigFile,
    timeout: Annotated[float, typer.Option(min=10, help="Seconds for everything.")] = 600.0,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Accept a file that starts Ray without a token.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the cluster of a launcher file and wait until all its nodes are alive."""
    from workers import launcher

    result = launcher.up(config, open_cluster=no_token, seconds=timeout, say=_progress)
    if as_json:
        print(result.model_dump_json())
        return
    _say(
        f"{len(result.nodes)} nodes alive after {result.seconds:.0f} s, cluster at "
        f"[bold]{result.address}[/]"
    )
    _say(f"search:    wiring search --address {result.address} … (from one of its nodes)")
    _say(f"end it:    wiring cluster down {config}")


@app.command()
def down(
    config: ConfigFile,
    timeout: Annotated[float, typer.Option(min=10, help="Seconds for everything.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """End the cluster of a launcher file and check that no host runs a raylet any more."""
    from workers import launcher

    result = launcher.down(config, seconds=timeout, say=_progress)
    if as_json:
        print(result.model_dump_json())
    elif result.hosts:
        _say(f"no raylet runs on {', '.join(result.hosts)} ({result.seconds:.0f} s)")


def _show(address: str, found: list[NodeInfo]) -> None:
    """A table on a terminal, lines of fields elsewhere."""
    from rich.console import Console
    from rich.table import Table

    alive = [node for node in found if node.alive]
    rows = [
        (
            node.id[:8],
            node.host,
            "head" if node.head else "worker",
            "alive" if node.alive else "dead",
            f"{node.cpus_free:g} of {node.cpus:g}" if node.alive else "",
            f"{node.gpus_free:g} of {node.gpus:g}" if node.alive else "",
        )
        for node in found
    ]
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(title=f"cluster at {address}", title_justify="left")
        for name in ("node", "host", "role", "state", "CPUs free", "GPUs free"):
            table.add_column(name, no_wrap=True, justify="right" if "free" in name else "left")
        for node, row in zip(found, rows, strict=True):
            table.add_row(*row, style=None if node.alive else "red")
        console.print(table)
    else:
        for row in rows:
            print("\t".join(row))
    print(
        f"{len(alive)} alive, {len(found) - len(alive)} dead; "
        f"{sum(n.cpus_free for n in alive):g} of {sum(n.cpus for n in alive):g} CPUs free, "
        f"{sum(n.gpus_free for n in alive):g} of {sum(n.gpus for n in alive):g} GPUs free"
    )


def _say(text: str) -> None:
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(text)


def _warn(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style="yellow")


def _progress(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)
