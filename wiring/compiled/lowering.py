"""Turns a compacted network into a program, group by group and bundle by bundle.

Every bundle's forms are timed on the very tensor that reaches it, and what each returns is held
against the operator's own evaluation before it may be chosen.

Where an operator is *sensitive* (it takes signs), a value that rounds differently on its way may
come out with another sign. So all that leads up to such an operator keeps its order of
operations to the last bit; only what comes behind may be folded and summed in another order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wiring.compiled.chains import add_chain, affine
from wiring.compiled.forms import EAGER, Choice, Form, check_forms, choose
from wiring.compiled.program import Builder, Program, Step, is_ambiguous, join, join_words
from wiring.compiled.thresholds import is_monotone, sign_thresholds
from wiring.compiled.tuning import Memory
from wiring.errors import TopologyError
from wiring.graph.edges import Epilogue
from wiring.graph.measure import source_sizes
from wiring.graph.nodes import Bias
from wiring.graph.topology import Bundle, NodeGroup, Skip
from wiring.kernels.bitpack import PreparedSigns
from wiring.network import Network

CHANNELS_LAST, PLANAR = "channels_last", "planar"
LAYOUTS = {CHANNELS_LAST: torch.channels_last, PLANAR: torch.contiguous_format}


@dataclass
class _Group:
    """Places of a group: its sum, and `base`, from which the monotone `rest` leads to its value.

    The rest waits until it is known whether anybody wants floats or only their signs.
    """

    total: int
    base: int
    rest: list[nn.Module]
    value: int | None = None


class Lowering:
    """One pass over a network in evaluation, on an example of its input in its memory format."""

    def __init__(
        self,
        network: Network,
        example: Tensor,
        layout: str,
        memory: Memory,
        pinned: Mapping[str, str],
    ) -> None:
        self.network = network
        self.layout = layout
        self.graph = network.graph
        self.topology = network.graph.topology
        self.live = network.graph.live()
        self.memory = memory
        self.pinned = pinned
        self.builder = Builder(example.contiguous(memory_format=LAYOUTS[layout]))
        self.groups: dict[str, _Group] = {}
        self.choices: list[Choice] = []
        self.exact = self._exact(self._guarded())
        self.thresholds: dict[str, tuple[Tensor, Tensor] | None] = {}

    def run(self) -> Program:
        """The program of the whole network."""
        topology, network = self.topology, self.network
        for group in topology.groups:
            self._group(group)
        place = self._value(topology.output.name)
        exact = topology.output.name in self.exact
        place = add_chain(self.builder, list(network.head), place, owned=False, exact=exact)
        return Program(self.builder.steps, place)

    def _guarded(self) -> set[str]:
        """Groups whose sums a sensitive operator sees, directly or from afar."""
        found: set[str] = set()
        for group in reversed(self.topology.groups):
            for bundle in self.topology.bundles:
                reached = self.graph.op(bundle.name).sensitive or bundle.destination in found
                if group.name in bundle.sources and reached:
                    found.add(group.name)
            for skip in self.topology.skips:
                if skip.source == group.name and skip.destination in found:
                    found.add(group.name)
        return found

    def _exact(self, guarded: set[str]) -> set[str]:
        """The guarded groups, and those behind that only sensitive operators lead to."""
        ops = {bundle.name: self.graph.op(bundle.name) for bundle in self.topology.bundles}
        free = set() if guarded else {self.topology.input.name}
        for group in self.topology.groups:
            feeds = {s.source for s in self.topology.skips if s.destination == group.name}
            for bundle in self.topology.bundles:
                if bundle.destination == group.name:
                    feeds |= set(bundle.sources)
                    if group.name not in guarded and not ops[bundle.name].sensitive:
                        free.add(group.name)
            if feeds & free:
                free.add(group.name)
        return {group.name for group in self.topology.groups} - free

    def _group(self, group: NodeGroup) -> None:
        exact = group.name in self.exact
        modules = list(self.graph.nodes[group.name].children())
        signs = any(
            group.name in bundle.sources and self._reads_words(bundle)
            for bundle in self.topology.bundles
        )
        split = len(modules)
        while signs and split and is_monotone(modules[split - 1]):
            split -= 1
        now, rest = modules[:split], modules[split:]
        shared = any(
            skip.source == group.name and skip.carries == "sum" for skip in self.topology.skips
        )
        if group is self.topology.input:
            place, owned = self._stem(now, shared, exact)
        else:
            place, owned = self._sum(group, now, shared, exact)
        base = add_chain(self.builder, now, place, owned=owned and not shared, exact=exact)
        self.groups[group.name] = _Group(place, base, rest)

    def _stem(self, now: list[nn.Module], shared: bool, exact: bool) -> tuple[int, bool]:
        """The stem, with the nodes' norm where nobody else wants what it gives them."""
        chain = list(self.network.stem)
        if chain and now and not shared and not exact and isinstance(now[0], nn.BatchNorm2d):
            chain.append(now.pop(0))
        place = add_chain(self.builder, chain, 0, owned=False, exact=exact)
        if self.layout == CHANNELS_LAST:
            x, last = self.builder.value(place), torch.channels_last
            # Images of one channel lie in both formats, and convolutions go on in the other.
            if not x.is_contiguous(memory_format=last):
                convert = partial(Tensor.contiguous, memory_format=last)
                place = self.builder.add("format", convert, place)
        return place, place != 0

    def _sum(
        self, group: NodeGroup, now: list[nn.Module], shared: bool, exact: bool
    ) -> tuple[int, bool]:
        """What a group receives, in the order in which the graph adds it up; whether it is new.

        Takes from `now` what the only bundle of a group does along with its sums.
        """
        bundles = [b for b in self.topology.bundles if b.destination == group.name]
        skips = [
            (number, skip)
            for number, skip in enumerate(self.topology.skips)
            if skip.destination == group.name
        ]
        place, owned = self._begin(group)
        alone = len(bundles) == 1 and not skips and not shared and place < 0
        epilogue = _take_epilogue(now, exact) if alone else Epilogue()
        for bundle in bundles:
            message = self._bundle(bundle, epilogue, exact)
            place, owned = self._plus(place, owned, message, self.builder.is_new(message))
        for number, skip in skips:
            carried, new = self._carried(skip, group)
            if skip.gate:
                gate = self.graph.gates[str(number)]
                carried, new = self.builder.add("gate", gate.forward, carried), True
            place, owned = self._plus(place, owned, carried, new)
        if place < 0:
            raise TopologyError(f"node group '{group.name}' receives nothing")
        return place, owned

    def _begin(self, group: NodeGroup) -> tuple[int, bool]:
        """The place of what a group has before it receives anything, -1 for nothing; whether it
        is new."""
        return -1, False

    def _plus(self, place: int, owned: bool, other: int, new: bool) -> tuple[int, bool]:
        if place < 0:
            return other, new
        in_place = not is_ambiguous(self.builder.value(place))
        if owned and in_place:
            return self.builder.add("add", Tensor.add_, place, other), True
        if new and in_place:
            return self.builder.add("add", Tensor.add_, other, place), True
        return self.builder.add("add", torch.add, place, other), True

    def _carried(self, skip: Skip, group: NodeGroup) -> tuple[int, bool]:
        """The nodes of another group that a skip carries on; whether they are a copy."""
        whole = skip.carries == "sum"
        place = self.groups[skip.source].total if whole else self._value(skip.source)
        if skip.nodes is not None:
            index = torch.tensor(skip.nodes)
            return self.builder.add(
                "skip", partial(torch.index_select, dim=1, index=index), place
            ), True
        if group.size == self.topology.group(skip.source).size:
            return place, False
        view = partial(torch.narrow, dim=1, start=skip.start, length=group.size)
        return self.builder.add("skip", view, place), False

    def _value(self, name: str) -> int:
        """The place of a group's value."""
        group = self.groups[name]
        if group.value is None:
            group.value = add_chain(
                self.builder, group.rest, group.base, owned=False, exact=name in self.exact
            )
        return group.value

    def _words(self, name: str) -> int:
        """The place of the packed signs of a group's value."""
        group = self.groups[name]
        if not group.rest:
            return self.builder.once("pack", PreparedSigns(), group.base)
        if name not in self.thresholds:
            steps = nn.Sequential(*group.rest)
            self.thresholds[name] = sign_thresholds(steps, self.builder.value(group.base))
        found = self.thresholds[name]
        if found is None:
            return self.builder.once("pack", PreparedSigns(), self._value(name))
        return self.builder.once("pack", PreparedSigns(*found), group.base)

    def _read(self, bundle: Bundle, *, packed: bool) -> int:
        """The place of what a bundle reads: its sources' values or words, side by side."""
        places = [self._words(n) if packed else self._value(n) for n in bundle.sources]
        if len(places) == 1:
            return places[0]
        return self.builder.once("join", join_words if packed else join, *places)

    @contextmanager
    def _preview(self) -> Iterator[list[Step]]:
        values = {name: group.value for name, group in self.groups.items()}
        with self.builder.preview() as steps:
            yield steps
        for name, value in values.items():
            self.groups[name].value = value

    def _bundle(self, bundle: Bundle, epilogue: Epilogue, exact: bool) -> int:
        """The place of a bundle's sums, by the form that is chosen for it."""
        op, live = self.graph.op(bundle.name), self.live[bundle.name]
        forms = self._forms(bundle, epilogue)
        check_forms(forms, exact=exact, bundle=bundle.name, op=self._op_name(bundle))
        key = self._key(bundle, epilogue, forms)
        choice = choose(
            forms,
            self._timed,
            bundle=bundle.name,
            op=(self._op_name(bundle), op),
            live=live,
            memory=self.memory,
            key=key,
            pinned=self.pinned.get(bundle.name),
        )
        self.choices.append(choice)
        form = forms[choice.kernel]
        return self.builder.add(choice.kernel, form.kernel, self._read(bundle, packed=form.packed))

    def _forms(self, bundle: Bundle, epilogue: Epilogue) -> dict[str, Form]:
        """What the operator offers, by name; its own evaluation first."""
        op, live = self.graph.op(bundle.name), self.live[bundle.name]
        eager = {EAGER: epilogue.after(partial(op.evaluate, live))}
        with self._preview() as prepare:
            x = self.builder.value(self._read(bundle, packed=False))
        forms = {
            name: Form(kernel, False, x, prepare)
            for name, kernel in {**eager, **op.candidates(live, epilogue)}.items()
        }
        sizes = source_sizes(self.topology, bundle)
        packed = op.packed_candidates(live, sizes, epilogue)
        if packed:
            with self._preview() as prepare:
                words = self.builder.value(self._read(bundle, packed=True))
            forms |= {name: Form(k, True, words, prepare) for name, k in packed.items()}
        return forms

    def _timed(self, form: Form) -> Callable[[], object]:
        def call() -> None:
            self.builder.run(form.prepare)
            form.kernel(form.x)

        return call

    def _key(self, bundle: Bundle, epilogue: Epilogue, forms: Mapping[str, Form]) -> str:
        """All that the times of a bundle's forms depend on, beside the machine."""
        op, live = self.graph.op(bundle.name), self.live[bundle.name]
        x = forms[EAGER].x
        parts = {
            "op": self._op_name(bundle),
            "options": op.options.to_dict(),
            "weight": list(live.shape),
            "stride": op.stride,
            "padding": op.padding,
            "density": round(live.sum().item() / max(1, live.numel()), 3),
            "image": list(x.shape),
            "layout": self.layout,
            "strides": list(x.stride()),
            "epilogue": [epilogue.scale is not None, epilogue.shift is not None, epilogue.relu],
            "prepare": {name: [s.label for s in form.prepare] for name, form in forms.items()},
        }
        return json.dumps(parts, separators=(",", ":"))

    def _op_name(self, bundle: Bundle) -> str:
        return (bundle.op or self.network.spec.op).name

    def _reads_words(self, bundle: Bundle) -> bool:
        op, live = self.graph.op(bundle.name), self.live[bundle.name]
        sizes = source_sizes(self.topology, bundle)
        return bool(op.packed_candidates(live, sizes, Epilogue()))


def _take_epilogue(modules: list[nn.Module], exact: bool) -> Epilogue:
    """The first steps that a bundle can take over: a bias and a norm unless bits count, and a
    ReLU."""
    scale = shift = None
    relu = False
    if modules and not exact and isinstance(bias := modules[0], Bias):
        shift = bias.bias.detach()
        del modules[0]
    if modules and not exact and isinstance(norm := modules[0], nn.BatchNorm2d):
        scale, moved = affine(norm)
        shift = moved if shift is None else moved + scale * shift
        del modules[0]
    if modules and isinstance(modules[0], nn.ReLU):
        modules.pop(0)
        relu = True
    return Epilogue(scale, shift, relu)
