"""What the machine's matrix products can give: the limit of any layer made of them.

P pairs of token and expert, E experts, D width, F hidden width, W columns of the first product.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.measure import Laps, interleaved, paired, summary
from benchmarks.moe_cases import Case
from benchmarks.steps import Seconds

# Sides of the square products. The ceiling is the one at which the rate is highest; on CPU there
# the operands just fit a core's cache. `--parts ceiling` shows the others.
SIDES = {"cpu": (1024, 1536, 2048, 4096), "cuda": (2048, 4096, 8192, 16384)}
BEST_SIDE = {"cpu": 1536, "cuda": 8192}


class Product:
    """Called: one (rows, inner) @ (inner, columns) of contiguous operands; Seconds."""

    def __init__(
        self, rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.flops = 2 * rows * inner * columns
        self.device = device
        self.left = _filled(rows, inner, dtype=dtype, device=device)
        self.right = _filled(inner, columns, dtype=dtype, device=device)
        self.out = torch.empty(rows, columns, dtype=dtype, device=device)

    def __call__(self) -> Seconds:
        laps = Laps(self.device)
        laps.mark()
        torch.mm(self.left, self.right, out=self.out)
        laps.mark()
        (seconds,) = laps.seconds()
        return Seconds(seconds, seconds)


def ceiling(dtype: str, device: torch.device) -> Product:
    """A large square product."""
    return _square(BEST_SIDE[device.type], dtype, device)


def _square(side: int, dtype: str, device: torch.device) -> Product:
    return Product(side, side, side, getattr(torch, dtype), device)


class Floor:
    """Called: the matrix products of a step and nothing else; Seconds.

    Groups of rows have the sizes they have in the step; operands are contiguous and results go
    to memory that is there already. Gate and up projection are one product.
    """

    def __init__(self, case: Case, sizes: Sequence[int], device: torch.device) -> None:
        like = {"dtype": getattr(torch, case.dtype), "device": device}
        self.device = device
        self.sizes = [size for size in sizes if size]
        P, E, D, F, W = sum(sizes), len(self.sizes), case.width, case.hidden, case.first_width
        self.widths = D, F, W
        self.x_PD, self.hidden_PF, self.up_PW = (_filled(P, n, **like) for n in (D, F, W))
        self.first_EDW, self.down_EFD = _filled(E, D, W, **like), _filled(E, F, D, **like)
        self.to_x_PD, self.to_hidden_PF, self.to_up_PW = (
            torch.empty(P, n, **like) for n in (D, F, W)
        )
        self.to_first_EDW, self.to_down_EFD = map(torch.empty_like, (self.first_EDW, self.down_EFD))

    def __call__(self) -> Seconds:
        laps = Laps(self.device)
        laps.mark()
        self._forward()
        laps.mark()
        self._backward()
        laps.mark()
        return Seconds(*laps.seconds())

    def _forward(self) -> None:
        groups = self._groups(self.x_PD, self.hidden_PF, self.to_up_PW, self.to_x_PD)
        for e, (x, hidden, to_up, to_x) in enumerate(groups):
            torch.mm(x, self.first_EDW[e], out=to_up)
            torch.mm(hidden, self.down_EFD[e], out=to_x)

    def _backward(self) -> None:
        # The same numbers read in another shape are a contiguous transposed operand.
        D, F, W = self.widths
        groups = self._groups(
            self.x_PD, self.hidden_PF, self.up_PW, self.to_hidden_PF, self.to_x_PD
        )
        for e, (x, hidden, up, to_hidden, to_x) in enumerate(groups):
            torch.mm(x, self.down_EFD[e].view(D, F), out=to_hidden)
            torch.mm(up, self.first_EDW[e].view(W, D), out=to_x)
            torch.mm(hidden.view(F, -1), x, out=self.to_down_EFD[e])
            torch.mm(x.view(D, -1), up, out=self.to_first_EDW[e])

    def _groups(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(tensor.split(self.sizes) for tensor in rows), strict=True)


def _filled(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def rates(case: Case, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of square products and of the layer's own with even groups; shares of the ceiling."""
    rows = case.tokens if case.step == "competition" else case.tokens * case.top_k // case.experts
    D, F, W = case.width, case.hidden, case.first_width
    shapes = {"first": (rows, D, W), "down": (rows, F, D), "to the first's weights": (D, rows, W)}
    products = {f"square {side}": _square(side, case.dtype, device) for side in SIDES[device.type]}
    products |= {
        f"{name} {shape}": Product(*shape, getattr(torch, case.dtype), device)
        for name, shape in shapes.items()
    }
    runs: dict[str, Callable[[], Seconds]] = dict(products)
    found = {
        name: [products[name].flops / each.both / 1e9 for each in values]
        for name, values in interleaved(runs, rounds).items()
    }
    best = found[f"square {BEST_SIDE[device.type]}"]
    return {
        name: {**summary(values), "share": paired(values, best)["median"]}
        for name, values in found.items()
    }
