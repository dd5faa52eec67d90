"""What is measured of an MoE layer, and the layers that are measured against each other.

T tokens, E experts, K chosen per token, D width, F hidden width, W columns of the first product.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from benchmarks.looped import LoopedLayer
from llava_compete.moe import Experts, MoEConfig, MoELayer, RoutingContext

ACTIVATION = "silu"
COMPILED_WIDTH = 512  # compiling takes longer than all cases of less take together
BASE = "looped"  # whose time the others' are compared with


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer on one batch, in one kind of step."""

    step: Literal["router", "competition"] = "router"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    width: int = 512
    hidden: int = 1408
    experts: int = 4
    top_k: int = 2
    tokens: int = 2048
    gated: bool = True
    fresh: bool = False  # other tokens in each call, so other group sizes

    @property
    def name(self) -> str:
        """Words that ``--only`` looks for."""
        return (
            f"{self.step} {self.dtype} {self.width}/{self.hidden} ({self.experts}, {self.top_k}) "
            f"T {self.tokens}{'' if self.gated else ' not gated'}{' fresh' if self.fresh else ''}"
        )

    @property
    def first_width(self) -> int:
        """Columns of the first product: gate and up in one."""
        return self.hidden * (2 if self.gated else 1)

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return torch.finfo(getattr(torch, self.dtype)).bits // 8

    def flops(self, *, backward: bool) -> int:
        """Of the step's matrix products: those of the chosen pairs, in a competition of all."""
        pairs = self.tokens * (self.experts if self.step == "competition" else self.top_k)
        forward = 2 * pairs * self.width * (self.first_width + self.hidden)
        return forward * (3 if backward else 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the JSON."""
        return asdict(self)


def ours(case: Case, device: torch.device, router: str = "compete", **options: Any) -> MoELayer:
    """The library's layer; ``options`` are MoEConfig's. The same weights for the same case."""
    torch.manual_seed(0)
    experts = Experts(
        case.experts,
        case.width,
        case.hidden,
        case.width,
        activation=ACTIVATION,
        gated=case.gated,
        bias=False,
    )
    config = MoEConfig(num_experts=case.experts, top_k=case.top_k, router=router, **options)
    layer = MoELayer(experts, config, index=0).train()
    layer.competing = case.step == "competition"
    return layer.to(device, getattr(torch, case.dtype))


Prepare = Callable[[Experts], None]


class Source(NamedTuple):
    """The library's layer, and the weights of its experts as others lay them out."""

    layer: MoELayer
    first_EWD: Tensor  # W columns: the gate's rows, then the up projection's
    down_EDF: Tensor


def source(case: Case, device: torch.device) -> Source:
    """Of a case; the same numbers each time."""
    layer = ours(case, device)
    weights = {name: weight.detach() for name, weight in layer.experts.weights().items()}
    return Source(layer, *as_linear(weights))


def as_linear(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The experts' weights, or gradients, by name as torch's Linear has them: Source's."""
    inner = [weights[name].mT for name in ("gate_proj", "up_proj") if name in weights]
    return torch.cat(inner, dim=1), weights["down_proj"]


class MixtralLayer(nn.Module):
    """Router steps by transformers' experts: the router and losses of the library's layer."""

    def __init__(self, given: Source, implementation: str) -> None:
        super().__init__()
        stacked = given.layer.experts
        config = MixtralConfig(
            hidden_size=stacked.in_features,
            intermediate_size=stacked.hidden_features,
            num_local_experts=stacked.num_experts,
            hidden_act=stacked.activation,
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            self.experts = MixtralExperts(config)
        self.experts.gate_up_proj = nn.Parameter(given.first_EWD)
        self.experts.down_proj = nn.Parameter(given.down_EDF)
        self.router = given.layer.router
        self.losses: dict[str, Tensor] = {}  # of the last forward

    def forward(self, x_TD: Tensor) -> Tensor:
        routing = self.router(x_TD, self.experts, RoutingContext())
        self.losses = routing.losses
        return self.experts(x_TD, routing.ids_TK, routing.weights_TK)


@dataclass(frozen=True)
class Candidate:
    """A way to compute the layer, with the weights of the source."""

    build: Callable[[Source, Case], nn.Module]
    steps: tuple[str, ...] = ("router", "competition")
    gated_only: bool = False
    gathers_weights: bool = False  # a copy of the weights for each pair of token and expert
    compiled: bool = False
    exact: bool = True  # the gradients of the others

    def stands(self, case: Case) -> bool:
        """Can it take the case, and has this machine the memory for it?"""
        if case.step not in self.steps or (self.gated_only and not case.gated):
            return False
        if self.compiled and case.width < COMPILED_WIDTH:
            return False
        return not self.gathers_weights or 3 * self.gathered(case) < psutil.virtual_memory().total

    def gathered(self, case: Case) -> int:
        """Bytes of the copied weights; the backward makes as many again, and some of them twice."""
        each = case.width * (case.first_width + case.hidden) * case.element
        return case.tokens * case.top_k * each


def with_options(
    given: Source, case: Case, prepare: Prepare | None = None, **options: Any
) -> MoELayer:
    """The library's layer on the same weights, ``options`` of MoEConfig set, experts prepared."""
    other = ours(case, given.down_EDF.device, **options)
    other.load_state_dict(given.layer.state_dict(), assign=True)
    if prepare is not None:
        prepare(other.experts)
    return other


def prepared(*, compiled: bool, budget: float | None = None) -> Prepare:
    """Elementwise parts compiled or not; a bound in MiB of what a competition keeps."""

    def prepare(experts: Experts) -> None:
        if compiled:
            experts.compile_elementwise()
        if budget is not None:
            experts.competition_budget = int(budget * 2**20)

    return prepare


def _loop(**options: Any) -> Candidate:
    return Candidate(lambda given, case: LoopedLayer(*given, **options))


def _mixtral(implementation: str, *, gathers_weights: bool = False) -> Candidate:
    return Candidate(
        lambda given, case: MixtralLayer(given, implementation),
        steps=("router",),
        gated_only=True,
        gathers_weights=gathers_weights,
    )


def _ours(
    *steps: str,
    compiled: bool = False,
    budget: float | None = None,
    exact: bool = True,
    **options: Any,
) -> Candidate:
    """MoEConfig's ``options`` set; ``budget`` of a competition in MiB; no ``steps``: both kinds."""

    prepare = prepared(compiled=compiled, budget=budget)
    return Candidate(
        lambda given, case: with_options(given, case, prepare, **options),
        steps=steps or ("router", "competition"),
        compiled=compiled,
        exact=exact,
    )


CANDIDATES: dict[str, Candidate] = {
    BASE: _loop(),
    "looped, index_add": _loop(combine="index_add"),
    "transformers eager": _mixtral("eager"),
    "transformers batched_mm": _mixtral("batched_mm", gathers_weights=True),
    "transformers grouped_mm": _mixtral("grouped_mm"),
    "ours": _ours(),
    "ours, 50 MiB": _ours("competition", budget=50),
    "ours, compiled": _ours(compiled=True),
    "ours, compiled, 50 MiB": _ours("competition", compiled=True, budget=50),
    "ours, compiled, winners learn": _ours(
        "competition", compiled=True, exact=False, router_options={"losers_gradient": "none"}
    ),
}


def cases(*, quick: bool) -> list[Case]:
    """The cases of a whole run, or the few that show whether all works."""
    if quick:
        return [
            Case(step=step, dtype="float32", width=64, hidden=96, tokens=128)
            for step in ("router", "competition")
        ]
    shapes = [(512, 1408, 4, 2), (512, 1408, 8, 2), (512, 1408, 64, 8)]
    shapes += [(1024, 2816, 4, 2), (1024, 2816, 8, 2)]
    found = [
        Case(
            step=step,
            dtype=dtype,
            width=width,
            hidden=hidden,
            experts=experts,
            top_k=top_k,
            # All 64 experts on 2048 tokens are 16 times the work of a router step of (4, 2).
            tokens=512 if step == "competition" and experts == 64 else 2048,
        )
        for step in ("router", "competition")
        for dtype in ("bfloat16", "float32")
        for width, hidden, experts, top_k in shapes
    ]
    found += [
        Case(step=step, dtype=dtype, gated=False)
        for step in ("router", "competition")
        for dtype in ("bfloat16", "float32")
    ]
    # oneDNN compiles a kernel for each size of a group; where tokens stay it has done so before.
    found += [Case(fresh=True), Case(fresh=True, experts=64, top_k=8)]
    # So few that transformers' batched_mm, which copies weights for each token, has its chance.
    found += [Case(dtype=dtype, tokens=64) for dtype in ("bfloat16", "float32")]
    return found
