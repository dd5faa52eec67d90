"""What every router takes and returns.  T tokens, E experts, K chosen per token, D width."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from llava_compete.moe.experts import Experts


@dataclass(frozen=True)
class RoutingContext:
    """Step state a router may need beside the tokens themselves."""

    mask_T: Tensor | None = None  # bool; False: padding or a blank image, not to be counted
    competing: bool = False  # does this layer compete in this optimizer step?


@dataclass(frozen=True)
class RouterOptions:
    """The values of MoEConfig that a router is built from, and the layer's own seed."""

    width: int
    num_experts: int
    top_k: int
    seed: int
    distillation_theta: float


class Routing(NamedTuple):
    """Which experts take each token, with what weight."""

    ids_TK: Tensor  # int64 in 0..E; E means "no expert": costs nothing, its weight is 0
    weights_TK: Tensor  # dtype of x
    losses: dict[str, Tensor]  # unweighted float32 scalars, keyed as MoEConfig.loss_weights
    metrics: dict[str, Tensor]  # detached float32 scalars, for the log only
    outputs_TKD: Tensor | None = None  # the chosen experts' outputs, if the router has run them


class Router(Protocol):
    """An nn.Module built as ``router(options: RouterOptions)``."""

    competes: bool  # does it heed context.competing?

    def __call__(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing: ...

    def reset_parameters(self) -> None: ...
