"""Names to classes. A method is found by its file's name, then among installed plug-ins."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Generic, TypeVar

from wiring.errors import UnknownNameError, WiringError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What `wiring list` shows of a registered class."""

    name: str
    summary: str
    paper: str


class Registry(Generic[T]):
    """The classes of one kind, by name.

    `package` is searched for a module named like the entry (`dnw-no-update` lives in
    `dnw_no_update.py`), so a new file needs no list to be edited. `group` is the entry-point
    group in which other distributions offer theirs.
    """

    def __init__(self, kind: str, *, package: str, group: str) -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self._classes: dict[str, type[T]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator. Raises WiringError if another class holds the name already."""

        def add(cls: type[T]) -> type[T]:
            held = self._classes.get(name)
            if held is not None and (held.__module__, held.__qualname__) != (
                cls.__module__,
                cls.__qualname__,
            ):
                raise WiringError(
                    f"{self.kind} '{name}' is registered twice: by {held.__module__} "
                    f"and by {cls.__module__}"
                )
            self._classes[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """The class of that name. Raises UnknownNameError with the nearest names."""
        if name not in self._classes:
            module = name.replace("-", "_")
            if module.isidentifier() and module in self._modules():
                importlib.import_module(f"{self.package}.{module}")
        if name not in self._classes:
            self._load_plugins(only=name)
        if name not in self._classes:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {self._known()}"
            raise UnknownNameError(f"unknown {self.kind} '{name}'; {hint}")
        return self._classes[name]

    def names(self) -> list[str]:
        """Every name, sorted."""
        if not self._complete:
            for module in self._modules():
                importlib.import_module(f"{self.package}.{module}")
            self._load_plugins()
            self._complete = True
        return sorted(self._classes)

    def entries(self) -> list[Entry]:
        """Name, first line of the docstring, and paper of every class."""
        return [self._entry(name) for name in self.names()]

    def _entry(self, name: str) -> Entry:
        cls = self._classes[name]
        summary = (cls.__doc__ or "").strip().splitlines()
        return Entry(name, summary[0] if summary else "", getattr(cls, "paper", ""))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _known(self) -> str:
        return ", ".join(self.names())

    def _modules(self) -> list[str]:
        package = importlib.import_module(self.package)
        return [m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base"]

    def _load_plugins(self, only: str | None = None) -> None:
        for point in metadata.entry_points(group=self.group):
            if only is None or point.name == only:
                try:
                    point.load()
                except Exception as error:
                    raise WiringError(
                        f"plug-in '{point.name}' ({point.value}) cannot be loaded: {error}"
                    ) from error
