"""What every router takes and returns.  T tokens, E experts, K chosen per token, D width."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

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


class Router(nn.Module):
    """Chooses experts for tokens; ``options`` is all a router is built from."""

    competes = False  # does it heed context.competing?

    def __init__(self, options: RouterOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        """The experts of each token; a router that runs experts itself hands their outputs back."""
        raise TypeError(f"{type(self).__name__} does not say how it routes")

    def reset_parameters(self) -> None:
        """Initial values; a router without parameters has nothing to do."""
