"""W(i₁…i_d, j₁…j_d; p) = G₀[p] G₁[i₁, j₁] … G_d[i_d, j_d], G_k[i, j] matrices [r_{k-1}, r_k].

A destination's number is read as d digits i_k below m_k, a source's as d digits j_k below n_k, and
p is the pixel of the kernel. G₀ is there for kernels of more than one pixel (Garipov et al. 2016);
without it this is Novikov et al. 2015. It has Σ r_{k-1} m_k n_k r_k parameters, and kh·kw·r₀ more.

y is contracted core by core: one source's image with every kernel G₀[·, r], then one pair of digits
after the other; or G₀ G₁ in one where that is less work. W is never written out. Gradients are
those of this chain.

A size that is no product of d factors of about one size (a prime) is rounded up to the next that
is: the added sources are 0, the added destinations are left out.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, Epilogue, Kernel, Seen
from wiring.graph.ranks import largest_rank, one_size
from wiring.graph.tied import TiedOp

DEFAULT_SHARE = 0.25
IMAGES = 4


class TensorTrainOptions(Config):
    """`cores`: d, into how many factors the numbers of sources and of destinations are split.

    The ranks r_k: `rank` for all, in every layer alike, and at most as many as represent any
    weight; or as many as the share `parameters` of the dense layer's parameters pays for, at least
    one. 0.25 where nothing is said.
    """

    cores: Annotated[int, Field(ge=2, le=8)] = 3
    rank: PositiveInt | None = None
    parameters: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        return one_size(self, "rank", "parameters")


def factorise(size: int, factors: int) -> tuple[int, ...]:
    """Factors in rising order, the largest below twice the root: of `size`, or of the next larger
    number that has such factors."""
    while True:
        found = _split(size, factors)
        if found[-1] < 2 * size ** (1 / factors) + 1e-9:
            return found
        size += 1


def _split(size: int, factors: int) -> tuple[int, ...]:
    """Factors of `size` in rising order, their largest as small as can be."""
    if factors == 1:
        return (size,)
    divisors = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    divisors += [size // d for d in divisors]
    found = (sorted((*_split(size // d, factors - 1), d)) for d in sorted(set(divisors)))
    return min(map(tuple, found), key=lambda parts: (parts[-1], parts[::-1]))


@EDGE_OPS.register("tensor-train")
class TensorTrain(TiedOp):
    """A chain of small tensors, one for each digit of a node's number."""

    paper = (
        "Novikov et al.: Tensorizing Neural Networks, NIPS 2015; Garipov et al.: Ultimate "
        "Tensorization, 2016"
    )
    use = (
        "For the widest layers, where it has by far the fewest parameters. It runs faster at small "
        "ranks only: where time counts rather than memory, take `low-rank`."
    )
    Options: ClassVar[type[Config]] = TensorTrainOptions

    def make_parameters(self) -> None:
        """`kernel` [kh·kw, r₀] where kernels have pixels, and d cores [r_{k-1}, m_k, n_k, r_k].

        Factors of destinations rise and those of sources fall along the chain, which keeps what is
        in between small.
        """
        destinations, sources, height, width = self.shape
        self.rows = factorise(destinations, self.options.cores)
        self.columns = factorise(sources, self.options.cores)[::-1]
        self.pixels = height * width
        if self.options.rank is not None:
            rank = self.options.rank
        else:
            limit = (self.options.parameters or DEFAULT_SHARE) * self.shape.numel()
            rank = largest_rank(self._count, limit, max(self._ranks(None)))
        ranks = self._ranks(rank)
        self.kernel = nn.Parameter(torch.empty(self.pixels, ranks[0])) if self.pixels > 1 else None
        sizes = zip(pairwise(ranks), self.rows, self.columns, strict=True)
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(before, m, n, after)) for (before, after), m, n in sizes
        )

    def _ranks(self, rank: int | None) -> list[int]:
        """r₀ … r_d: at most `rank`, and never more than are of use."""
        modes = [m * n for m, n in zip(self.rows, self.columns, strict=True)]
        left, right = self.pixels, math.prod(modes)
        ranks = []
        for mode in (*modes, 1):
            full = min(left, right)
            ranks.append(full if rank is None else min(rank, full))
            left, right = left * mode, right // mode
        return ranks

    def _count(self, rank: int) -> int:
        """Parameters at this rank."""
        ranks = self._ranks(rank)
        sizes = zip(pairwise(ranks), self.rows, self.columns, strict=True)
        kernel = self.pixels * ranks[0] if self.pixels > 1 else 0
        return kernel + sum(before * m * n * after for (before, after), m, n in sizes)

    @property
    def ranks(self) -> list[int]:
        """r₀ … r_d."""
        return [*(core.shape[0] for core in self.cores), 1]

    def reset_parameters(self, fan_in: int) -> None:
        """All cores uniform, of one variance."""
        parameters = list(self.parameters())
        variance = (1 / (3 * fan_in * math.prod(self.ranks))) ** (1 / len(parameters))
        for parameter in parameters:
            nn.init.uniform_(parameter, -((3 * variance) ** 0.5), (3 * variance) ** 0.5)

    def expand(self) -> Tensor:
        """The chain multiplied out: [pixels, m₁, n₁, …, m_d, n_d] put in order."""
        chain = self.cores[0].new_ones(1, 1) if self.kernel is None else self.kernel
        for core in self.cores:
            # Under autocast a product has another type than the next core.
            chain = torch.tensordot(chain, core.to(chain.dtype), dims=1)
        chain = chain.squeeze(-1)
        d = len(self.cores)
        order = (*range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 0)
        weight = chain.permute(order).reshape(
            math.prod(self.rows), math.prod(self.columns), *self.shape[2:]
        )
        return weight[: self.shape[0], : self.shape[1]]

    @property
    def joins(self) -> bool:
        """Whether the kernels are multiplied into the first core before they meet images: where
        that takes no more products than one after the other."""
        return self.kernel is not None and self._joined() <= self._apart()

    @property
    def _first(self) -> tuple[int, int, int, int]:
        before, m, n, after = self.cores[0].shape
        return before, m, n, after

    def _apart(self) -> int:
        """Products a pixel of the kernels and the first core, one after the other."""
        _, m, _, after = self._first
        before = self.ranks[0]
        kernels = self.shape[1] * self.pixels * before if self.pixels > 1 else 0
        return kernels + math.prod(self.columns) * m * before * after

    def _joined(self) -> int:
        """Products a pixel of the two in one."""
        _, m, _, after = self._first
        return math.prod(self.columns) * m * after * self.pixels

    def whole(self, x: Tensor) -> Tensor:
        """Kernels first, then the digits one by one; the weight is not written out."""
        return self._contract(x, joined=self.joins)

    def _contract(self, x: Tensor, *, joined: bool) -> Tensor:
        images, (destinations, sources, height, width) = len(x), self.shape
        first, *others = (core.to(x.dtype) for core in self.cores)
        added = math.prod(self.columns) - sources
        # State: [destinations so far, rank, sources left, pixels of all images].
        if joined and self.kernel is not None:
            _, m, n, after = first.shape
            pairs = torch.tensordot(self.kernel.to(x.dtype), first, dims=1)
            filters = pairs.permute(1, 3, 2, 0).reshape(m * after, n, height, width)
            x = F.pad(x, (0, 0, 0, 0, 0, added)) if added else x
            x = x.reshape(images, n, -1, *x.shape[2:]).transpose(1, 2).flatten(0, 1)
            sums = self.convolve(x, filters)
            state = sums.reshape(images, -1, m, after, sums.shape[2] * sums.shape[3])
            state = state.permute(2, 3, 1, 0, 4).reshape(m, after, state.shape[1], -1)
        else:
            if self.kernel is None:
                x = F.pad(x, (self.padding,) * 4) if self.padding else x
                sums = x[:, :, :: self.stride, :: self.stride].unsqueeze(2)
            else:
                filters = self.kernel.T.reshape(-1, 1, height, width)
                single = x.reshape(images * sources, 1, *x.shape[2:])
                sums = self.convolve(single, filters)
                sums = sums.view(images, sources, *sums.shape[1:])
            state = sums.flatten(3).permute(2, 1, 0, 3).flatten(2)
            state = (F.pad(state, (0, 0, 0, added)) if added else state).unsqueeze(0)
            others = [first, *others]
        for core in others:
            rank, m, n, after = core.shape
            matrix = core.permute(1, 3, 0, 2).reshape(m * after, rank * n)
            done, _, _, pixels = state.shape
            state = torch.matmul(matrix, state.reshape(done, rank * n, -1))
            state = state.view(done * m, after, -1, pixels)
        y = state.reshape(len(state), images, -1)[:destinations].transpose(0, 1)
        return y.reshape(images, destinations, *sums.shape[-2:])

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Also the chain with the kernels in the first core, and with the two apart, on a few
        images at a time: what is in between then stays in a processor's cache."""
        found = super().candidates(live, epilogue)
        if self.kernel is None or not self.is_whole(live):
            return found
        twin = copy.deepcopy(self).requires_grad_(False)

        def run(x: Tensor, joined: bool) -> Tensor:
            parts = torch.split(x, IMAGES) if len(x) > IMAGES else [x]
            sums = [twin._contract(part, joined=joined) for part in parts]
            return torch.cat(sums) if len(sums) > 1 else sums[0]

        forms = {"kernels joined": True, "kernels apart": False}
        return found | {
            name: epilogue.after(partial(run, joined=joined), fresh=True)
            for name, joined in forms.items()
        }

    def whole_cost(self, positions: int) -> Cost:
        """Σ_k (m₁…m_k)(n_k…n_d) r_{k-1} r_k multiplications and additions at each of P pixels, and
        S·kh·kw·r₀ for kernels of more than one pixel; or kh·kw·m₁(n₁…n_d) r₁ for these and the
        first core together, where that is less."""
        products = self._joined() if self.joins else self._apart()
        for k, (before, after) in list(enumerate(pairwise(self.ranks)))[1:]:
            outputs, inputs = math.prod(self.rows[: k + 1]), math.prod(self.columns[k:])
            products += outputs * inputs * before * after
        products *= positions
        return Cost(products, products, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """TT-SVD (Oseledets 2011): within √(cores) of the nearest weight of these ranks."""
        from tensorly.decomposition import tensor_train

        destinations, sources, height, width = self.shape
        rows, columns = math.prod(self.rows), math.prod(self.columns)
        padded = weight.new_zeros(rows, columns, height, width, dtype=torch.float64)
        padded[:destinations, :sources] = weight
        d = len(self.cores)
        split = padded.reshape(*self.rows, *self.columns, self.pixels)
        order = (2 * d, *(axis for k in range(d) for axis in (k, d + k)))
        modes = [m * n for m, n in zip(self.rows, self.columns, strict=True)]
        tensor = split.permute(order).reshape(self.pixels, *modes)
        found = tensor_train(tensor.cpu().numpy(), rank=[1, *self.ranks])
        factors = [torch.from_numpy(factor).to(weight.device) for factor in found.factors]
        kernel = factors[0].reshape(self.pixels, -1)
        if self.kernel is None:
            # The one pixel's factor is a number.
            factors[1] = torch.tensordot(kernel, factors[1], dims=1)
        else:
            self.kernel.copy_(kernel)
        for core, factor in zip(self.cores, factors[1:], strict=True):
            core.copy_(factor.reshape(core.shape))
        self._balance()

    def _balance(self) -> None:
        """Cores of one norm, which train alike: TT-SVD leaves it all to the last."""
        parameters = list(self.parameters())
        norms = [float(parameter.norm()) for parameter in parameters]
        if all(norms):
            norm = math.exp(sum(math.log(n) for n in norms) / len(norms))
            for parameter, n in zip(parameters, norms, strict=True):
                parameter.mul_(norm / n)
