"""What was done to a network, layer by layer, and what it costs before and after."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from wiring.cost import Cost, total

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class LayerRow:
    """One layer: `became` says what it is now, None where it was left as it was; `reason` then
    says why. `note` is what one should know besides."""

    name: str
    kind: str
    shape: tuple[int, ...]
    became: str | None = None
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Conversion:
    """What `convert`, `compress` and `revert` did.

    `before` and `after` are costs of one example in the whole network, None where no example was
    given. `steps` are remarks on the network as a whole, in order.
    """

    rows: tuple[LayerRow, ...]
    before: Cost | None = None
    after: Cost | None = None
    steps: tuple[str, ...] = field(default=())

    @property
    def converted(self) -> list[LayerRow]:
        """The layers that were changed."""
        return [row for row in self.rows if row.became is not None]

    @property
    def left(self) -> list[LayerRow]:
        """The layers that were left as they were."""
        return [row for row in self.rows if row.became is None]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        costs = {"before": self.before, "after": self.after}
        return {
            "rows": [asdict(row) for row in self.rows],
            "converted": len(self.converted),
            "left": len(self.left),
            "steps": list(self.steps),
            **{name: cost and cost.to_dict() for name, cost in costs.items()},
        }

    def __str__(self) -> str:
        lines = [*self.steps, self.headline()]
        for row in self.rows:
            what = row.became if row.became is not None else f"LEFT AS IT IS: {row.reason}"
            note = f" ({row.note})" if row.note else ""
            lines.append(f"  {row.name} [{row.kind} {_size(row.shape)}]: {what}{note}")
        lines += [
            f"  {name}: {before} → {after} ({ratio})" for name, before, after, ratio in self.costs()
        ]
        return "\n".join(lines)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in ("layer", "kind", "weight", "is now", "why not, and what to know"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            left = row.became is None
            what = "left as it is" if left else str(row.became)
            why = " ".join(text for text in (row.reason, row.note) if text)
            table.add_row(
                Text(row.name), row.kind, _size(row.shape), Text(what), Text(why),
                style="bold yellow" if left else None,
            )  # fmt: skip
        parts: list[RenderableType] = [Text(step) for step in self.steps]
        parts += [table, Text(self.headline(), style="bold")]
        if self.before is not None:
            costs = Table(box=None, pad_edge=False)
            for column in ("one example", "before", "after", "ratio"):
                costs.add_column(column, justify="left" if column == "one example" else "right")
            for line in self.costs():
                costs.add_row(*line)
            parts.append(costs)
        return Group(*parts)

    def headline(self) -> str:
        """One sentence: how many layers were converted, and how many weights were left out."""
        left = sum(_count(row.shape) for row in self.left)
        every = sum(_count(row.shape) for row in self.rows)
        share = left / every if every else 0.0
        return (
            f"{len(self.converted)} of {len(self.rows)} layers converted; {len(self.left)} left as "
            f"they are, which hold {share:.1%} of these layers' weights"
        )

    def costs(self) -> list[tuple[str, str, str, str]]:
        """(what, before, after, ratio) of every count that is not 0 in both; with the energy."""
        if self.before is None or self.after is None:
            return []
        before, after = self.before.to_dict(), self.after.to_dict()
        return [
            (name.replace("_", " "), _number(old), _number(after[name]), _ratio(old, after[name]))
            for name, old in before.items()
            if old or after[name]
        ]


def network_cost(model: nn.Module, example: Tensor | None, *, again: bool = False) -> Cost | None:
    """The cost of one example in the whole network; None without an example. What is not counted
    is warned of, but not `again`."""
    if example is None:
        return None
    from wiring.models.cost import model_cost

    with warnings.catch_warnings():
        if again:
            warnings.simplefilter("ignore", UserWarning)
        return total([row.cost for row in model_cost(model, example[:1])])


def merged(reports: Sequence[Conversion]) -> Conversion:
    """The report of steps that followed one another: each layer as the last step that changed it
    left it."""
    rows: dict[str, LayerRow] = {}
    for report in reports:
        for row in report.rows:
            known = rows.get(row.name)
            if known is None or known.became is None:
                rows[row.name] = (
                    row if known is None else replace(row, kind=known.kind, shape=known.shape)
                )
            elif row.became is not None:
                notes = "; ".join(note for note in (known.note, row.note) if note)
                rows[row.name] = replace(row, kind=known.kind, shape=known.shape, note=notes)
    steps = tuple(step for report in reports for step in report.steps)
    return Conversion(tuple(rows.values()), reports[0].before, reports[-1].after, steps)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.4g}"


def _ratio(before: float, after: float) -> str:
    if not before or not after:
        return "–" if before == after else ("new" if not before else "gone")
    return f"{before / after:.3g}× less" if after <= before else f"{after / before:.3g}× more"
