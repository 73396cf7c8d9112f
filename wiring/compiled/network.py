"""A trained network in its fast form: no dead nodes, packed weights, the fastest kernels here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wiring.compact import compact
from wiring.compiled.forms import Choice
from wiring.compiled.lowering import CHANNELS_LAST, LAYOUTS, PLANAR, Lowering
from wiring.compiled.program import Program
from wiring.compiled.tuning import Memory, Microseconds, cache_path, measure, with_threads
from wiring.compiled.unroll import lowering_of
from wiring.errors import CheckpointError, ConfigError, WiringError
from wiring.export import exported, load_exported
from wiring.files import write_atomic
from wiring.network import ModelSpec, Network


class CompiledNetwork:
    """Images float32 [N, channels, H, W] to class scores [N, classes], without gradients.

    `spec` is that of the compacted network; `layout` the memory format in which it runs,
    `layout_us` what it took in each. Calls share nothing, so threads may call at once.
    """

    def __init__(
        self,
        spec: ModelSpec,
        program: Program,
        choices: list[Choice],
        layout: str,
        layout_us: Microseconds,
        stored: bytes,
    ) -> None:
        self.spec = spec
        self.layout = layout
        self.layout_us = layout_us
        self._program = program
        self._choices = choices
        self._format = LAYOUTS[layout]
        self._stored = stored

    def __call__(self, x: Tensor) -> Tensor:
        """Class scores. Raises WiringError for anything but float32 images on the CPU."""
        if x.dim() != 4 or x.shape[1] != self.spec.image.channels or x.dtype != torch.float32:
            raise WiringError(
                f"a compiled network takes float32 [N, {self.spec.image.channels}, H, W], "
                f"got {x.dtype} {list(x.shape)}".replace("torch.", "")
            )
        if x.device.type != "cpu":
            raise WiringError(f"a compiled network runs on the CPU, got images on {x.device}")
        with torch.no_grad():
            return self._program(x.contiguous(memory_format=self._format))

    def choices(self) -> list[Choice]:
        """What every bundle runs on, in the order of the topology."""
        return list(self._choices)

    def steps(self) -> list[str]:
        """What runs, in order, one word each."""
        return [step.label for step in self._program.steps]

    def save(self, path: Path | str) -> None:
        """Write the network as `wiring.export.export` does: as many bits as its cost says.

        Raises CheckpointError where the file cannot be written.
        """
        try:
            write_atomic(Path(path), self._stored)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None


@torch.no_grad()
def compile(
    network: Network,
    *,
    example: Tensor | None = None,
    batch: int = 1,
    threads: int | None = None,
    kernels: Mapping[str, str] | None = None,
    cache: Path | bool = True,
) -> CompiledNetwork:
    """The fast form of a trained network: the same function in evaluation.

    Forms are chosen for images like `example` [N, channels, H, W] (by default `batch` normal
    ones of the spec's shape) and for `threads` threads (by default PyTorch's present number);
    other batches run all the same. `kernels` names the form of some bundles instead. A graph in
    discrete time is unrolled: copy t of a bundle is `name-t` in the choices. What was
    measured is kept in `cache`, a file (by default one of the user's; False for none).

    Raises WiringError for a network that is not float32 on the CPU, for a graph in continuous
    time, and for a kernel that does not compute what its operator does, ConfigError for kernels
    that are not there.
    """
    parameter = next(network.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise WiringError(
            "compiled networks are float32 on the CPU, got one of "
            f"{parameter.dtype} on {parameter.device}".replace("torch.", "")
        )
    kind = lowering_of(network)
    small = compact(network).eval()
    unknown = set(kernels or ()) - {bundle.name for bundle in small.spec.topology.bundles}
    if unknown:
        raise ConfigError(f"there is no bundle '{min(unknown)}' to choose a kernel for")
    example = _images(small.spec, batch) if example is None else example.detach()
    with with_threads(threads):
        memory = Memory(_path(cache))
        made = {
            name: _lower(kind(small, example, name, memory, kernels or {}))
            for name in _layouts(small)
        }
        layout, times = _pick(small, example, made, memory)
        memory.save()
    program, choices = made[layout]
    return CompiledNetwork(small.spec, program, choices, layout, times, exported(small))


def load(
    path: Path | str,
    *,
    example: Tensor | None = None,
    batch: int = 1,
    threads: int | None = None,
    kernels: Mapping[str, str] | None = None,
    cache: Path | bool = True,
) -> CompiledNetwork:
    """An exported or saved network, compiled for this machine. Raises what `load_exported` does."""
    network = load_exported(path)
    return compile(
        network, example=example, batch=batch, threads=threads, kernels=kernels, cache=cache
    )


def _path(cache: Path | bool) -> Path | None:
    if isinstance(cache, bool):
        return cache_path() if cache else None
    return cache


def _images(spec: ModelSpec, batch: int) -> Tensor:
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    generator = torch.Generator().manual_seed(0)
    size = (batch, spec.image.channels, spec.image.side, spec.image.side)
    return torch.randn(size, generator=generator)


def _layouts(network: Network) -> list[str]:
    """Memory formats to try. Bits that must not change are computed in the one of evaluation."""
    bundles = network.spec.topology.bundles
    sensitive = any(network.graph.op(bundle.name).sensitive for bundle in bundles)
    return [CHANNELS_LAST] if sensitive else [CHANNELS_LAST, PLANAR]


def _lower(lowering: Lowering) -> tuple[Program, list[Choice]]:
    return lowering.run(), lowering.choices


def _pick(
    network: Network,
    example: Tensor,
    made: Mapping[str, tuple[Program, list[Choice]]],
    memory: Memory,
) -> tuple[str, Microseconds]:
    """The faster layout, and what the whole network took in each."""
    if len(made) == 1:
        return next(iter(made)), {}
    content = [
        network.spec.to_dict(),
        list(example.shape),
        {name: [choice.kernel for choice in choices] for name, (_, choices) in made.items()},
    ]
    text = json.dumps(content, sort_keys=True)
    key = f"layout {hashlib.sha256(text.encode()).hexdigest()}"
    times = memory.get(key, made)
    if times is None:
        forms = {}
        for name, (program, _) in made.items():
            images = example.contiguous(memory_format=LAYOUTS[name])
            forms[name] = lambda program=program, images=images: program(images)
        times = measure(forms)
        memory.put(key, times)
    return min(times, key=lambda name: times[name]), times
