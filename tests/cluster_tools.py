"""A Ray cluster of several nodes on this machine, for tests that break one of them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from workers import nodes, processes
from workers.nodes import Node

_STORE = ("--object-store-memory=80000000",)


class LocalCluster:
    """`nodes` Ray nodes with `cpus` CPUs each on loopback; node 0 is the head.

    A context manager: everything it started is gone at the end. `address` and `token` are what
    `workers.cluster.connect` takes; `directory` is what `wiring cluster … --dir` takes.
    """

    def __init__(self, nodes: int = 3, cpus: int = 1, head_cpus: int | None = None) -> None:
        self.count = nodes
        self.cpus = cpus
        self.head_cpus = cpus if head_cpus is None else head_cpus
        self.directory = Path(tempfile.mkdtemp(prefix="wc-", dir="/tmp"))
        self.token = self.directory / "token"
        self.started: list[Node] = []

    @property
    def address(self) -> str:
        return self.started[0].address

    def __enter__(self) -> Self:
        try:
            self.started = [
                nodes.start_head(self.directory, port=0, num_cpus=self.head_cpus, options=_STORE)
            ]
            with ThreadPoolExecutor(max_workers=2) as pool:
                self.started += pool.map(lambda _: self._join(), range(self.count - 1))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _join(self) -> Node:
        return nodes.start_worker(self.directory, self.address, num_cpus=self.cpus, options=_STORE)

    def add(self) -> Node:
        """One more node."""
        self.started.append(self._join())
        return self.started[-1]

    def raylet(self, index: int) -> processes.Process:
        """The raylet process of node `index`."""
        return next(p for p in self.started[index].running() if "/raylet/raylet " in p.command)

    def kill_raylet(self, index: int) -> int:
        """`kill -9` the raylet of node `index`; returns the number it had."""
        pid = self.raylet(index).pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def close(self) -> None:
        nodes.stop(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
