"""Edge rules that train the complete graph first and choose its edges afterwards."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from wiring.config import Config, Share
from wiring.errors import WiringError
from wiring.graph.phases import Phase
from wiring.graph.rules import EdgeRule, ScopeEdges, select_within


class PretrainOptions(Config):
    """`pretrain` is the share of training that the complete graph gets; `lr` the rate of what
    follows as a multiple of the configured one."""

    pretrain: Share = 0.5
    lr: PositiveFloat = 1.0


class CompleteFirst(EdgeRule):
    """Every usable edge lives in the first phase; the k strongest of them from the second on."""

    scheduled = True

    def begin(self) -> None:
        """Raises WiringError where training is too short to have a first and a last phase."""
        if self.clock.steps == 1:
            raise WiringError(
                f"rule {type(self).__name__} trains in {len(self.phases())} phases, "
                "for which one optimiser step is too few"
            )

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        if live is None or self.clock.phase == 0:
            return allowed
        return self.strongest(scores, allowed) if self.clock.begins_phase else live


class PruningOptions(PretrainOptions):
    """After `pretrain`, edges are removed in `rounds`, each followed by an equal stretch of
    training."""

    rounds: PositiveInt = 5
    lr: PositiveFloat = 0.1


class IterativePruning(CompleteFirst):
    """train → (prune → retrain) × rounds; an edge that was removed stays away.

    Round r of R leaves usable · (k / usable)^(r / R) edges, the last one exactly k. With a limit of
    cost, the cost of what is left shrinks like that.
    """

    def phases(self) -> tuple[Phase, ...]:
        options = self.options
        share = (1 - options.pretrain) / options.rounds
        rounds = range(1, options.rounds + 1)
        retrain = tuple(Phase(f"retrain {r}", share, options.lr) for r in rounds)
        return (Phase("train", options.pretrain), *retrain)

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        return allowed if live is None else live

    def update(self, edges: ScopeEdges) -> Tensor | None:
        return self.prune(edges) if self.clock.begins_phase else None

    @abstractmethod
    def prune(self, edges: ScopeEdges) -> Tensor:
        """The live edges [E] that survive the round that begins."""

    @property
    def progress(self) -> float:
        """The share of pruning that is done after the round that begins."""
        if self.clock.phase_end == self.clock.steps:
            return 1.0
        return self.clock.phase / float(self.options.rounds)

    def quota(self, usable: int) -> int:
        """How many edges the round that begins leaves."""
        done = self.progress
        return self.budget if done == 1 else round(usable ** (1 - done) * self.budget**done)

    def survivors(self, scores: Tensor, edges: ScopeEdges) -> Tensor:
        """The live edges of the highest scores [E] that this round's budget allows."""
        if self.limit is None:
            return self.strongest(scores, edges.live, self.quota(int(edges.allowed.sum())))
        assert self.prices is not None
        whole = float(self.prices[edges.allowed].double().sum())
        limit = whole ** (1 - self.progress) * self.limit**self.progress
        return select_within(scores, self.prices, edges.live, limit)
