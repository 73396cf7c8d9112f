"""The convolution of live edges for inference: edges listed once, then one call per image batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads
from wiring.kernels.masked_conv2d.definition import check_edges, check_image, dense, last
from wiring.kernels.masked_conv2d.op import readable, sizes

_native = native("masked_conv2d")


class PreparedMasked:
    """relu(Σ_live w_uv x_u + shift_v), for fixed weights; shift and relu are optional.

    Keeps 8 bytes per live edge, an address offset and a weight, and 8 per destination. Offsets
    belong to one size of image; another size rewrites them in place, so one object serves one
    thread at a time. Returns channels_last [N, D, H', W'] for channels_last images, and NCHW for
    NCHW ones, which saves both transpositions; an image that is both counts as channels_last.
    """

    def __init__(
        self,
        weight: Tensor,
        live: Tensor,
        *,
        stride: int,
        padding: int,
        shift: Tensor | None = None,
        relu: bool = False,
    ) -> None:
        """weight float32, live bool [D, S, kh, kw]; shift float32 [D]. Raises WiringError."""
        check_edges(weight, ("live", live))
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise WiringError(
                f"prepared weights must be float32 on a CPU, got {weight.dtype} on {weight.device}"
            )
        if stride < 1 or padding < 0:
            raise WiringError(f"stride must be ≥ 1 and padding ≥ 0, got {stride} and {padding}")
        if shift is not None and (shift.dtype != torch.float32 or shift.shape != weight.shape[:1]):
            raise WiringError(
                f"the shift must be float32 [{len(weight)}], got {shift.dtype} {list(shift.shape)}"
            )
        self.weight_shape = weight.shape
        self.stride, self.padding, self.relu = stride, padding, relu
        self.shift = None if shift is None else shift.detach().clone().contiguous()
        live = live.detach()
        counts = live.sum(dim=(1, 2, 3))
        self._start = F.pad(counts.cumsum(0), (1, 0))
        _, channel, i, j = live.nonzero(as_tuple=True)
        # An int32 offset and the bits of a float32 side by side.
        self._edges = torch.empty(len(channel), 2, dtype=torch.int32)
        self._edges[:, 1] = weight.detach()[live].view(torch.int32)
        self._layout = (weight.shape[2] * weight.shape[3], weight.shape[3])
        self._edges[:, 0] = self._offsets(channel, i, j).to(torch.int32)
        self._key: tuple[object, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        shift = 0 if self.shift is None else self.shift.nbytes
        return self._start.nbytes + self._edges.nbytes + shift

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x float32 [N, S, H, W] on the CPU → [N, D, H', W']. Raises WiringError."""
        kernel = _native()
        if kernel is None:
            return self._definition(x)
        x, x_last = readable(x)
        key = (x.shape, x_last, kernel.instruction_set())
        if key != self._key:
            self._prepare(x, x_last)
            self._key = key
        n, d = self._size[0], self._size[4]
        h, w = self._output
        y = last(n, d, h, w, x) if x_last else x.new_empty(n, d, h, w)
        kernel.prepared(
            self._size, x.data_ptr(), self._start.data_ptr(), self._edges.data_ptr(),
            0 if self.shift is None else self.shift.data_ptr(), self.relu, y.data_ptr(), threads(),
        )  # fmt: skip
        return y

    def _check(self, x: Tensor) -> tuple[int, int]:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise WiringError(f"images must be float32 on a CPU, got {x.dtype} on {x.device}")
        like = torch.empty(self.weight_shape, device="meta")
        return check_image(x.to("meta"), like, self.stride, self.padding)

    def _prepare(self, x: Tensor, x_last: bool) -> None:
        """Rewrite the offsets for images of this size."""
        kernel = _native()
        assert kernel is not None
        self._output = self._check(x)
        self._size = sizes(
            x.shape, self.weight_shape, self.stride, self.padding, x_last, y_last=x_last
        )
        layout = kernel.layout(self._size)
        if x.numel() and layout != self._layout:  # no image has no layout
            taps = self._taps()
            self._layout = layout
            self._edges[:, 0] = self._offsets(*taps).to(torch.int32)

    def _phases(self) -> tuple[int, int]:
        return min(self.stride, self.weight_shape[2]), min(self.stride, self.weight_shape[3])

    def _offsets(self, channel: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Where taps start: native/planes.h, Planes::offset."""
        (rows, columns), (line, width), step = self._phases(), self._layout, self.stride
        plane = (channel * rows + i % step) * columns + j % step
        return plane * line + (i // step) * width + j // step

    def _taps(self) -> tuple[Tensor, Tensor, Tensor]:
        """(channel, i, j) of every edge: the inverse of `_offsets`."""
        (rows, columns), (line, width), step = self._phases(), self._layout, self.stride
        offset = self._edges[:, 0].to(torch.int64)
        plane, tap = offset // line, offset % line
        i = tap // width * step + plane // columns % rows
        j = tap % width * step + plane % columns
        return plane // (rows * columns), i, j

    def _definition(self, x: Tensor) -> Tensor:
        self._check(x)
        weight = torch.zeros(self.weight_shape)
        row = torch.repeat_interleave(torch.arange(len(weight)), self._start.diff())
        weight[(row, *self._taps())] = self._edges[:, 1].contiguous().view(torch.float32)
        y = dense(x, weight, torch.ones_like(weight, dtype=torch.bool), self.stride, self.padding)
        if self.shift is not None:
            y += self.shift.view(-1, 1, 1)
        if self.relu:
            y.relu_()
        return y if readable(x)[1] else y.contiguous()
