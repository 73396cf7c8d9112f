"""How far a tracking store has got, kept on disk beside the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workers.files import read_json, write_json

VERSION = 1
Entry = dict[str, Any]


class Cursor:
    """What the store at `uri` has of the study's run and of each trial's.

    An entry holds `run`, `creations` tried, `params` sent, `rows` sent, `end` and `status` sent,
    and the stamps of `files` sent. A cursor of another store starts from nothing.
    """

    def __init__(self, path: Path, uri: str) -> None:
        self.path = path
        self.uri = uri
        self.parent: Entry = {}
        self.trials: dict[str, Entry] = {}
        if path.exists():
            data = read_json(path)
            if data.get("version") == VERSION and data.get("uri") == uri:
                self.parent, self.trials = data["parent"], data["trials"]

    def forget(self) -> None:
        """Start from nothing: the store has lost what it was sent."""
        self.parent, self.trials = {}, {}

    def trial(self, identity: str) -> Entry:
        """The entry of a trial, for reading and for writing."""
        return self.trials.setdefault(identity, {})

    def save(self) -> None:
        """Write it all, at once or not at all."""
        data = {"version": VERSION, "uri": self.uri, "parent": self.parent, "trials": self.trials}
        write_json(self.path, data)
