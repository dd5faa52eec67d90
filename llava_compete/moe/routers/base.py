"""What every router takes and returns.

B sequences of S tokens, T = B*S tokens, E experts, K chosen per token, D width, O output width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from llava_compete.moe.experts import Experts
from llava_compete.moe.sequences import Sequences


@dataclass(frozen=True)
class RoutingContext:
    """Step state a router may need beside the tokens themselves."""

    mask_T: Tensor | None = None  # bool; False: padding or a blank image, not to be counted
    competing: bool = False  # does this layer compete in this optimizer step?
    sequences: Sequences | None = None  # texts or pictures; None: one holds all tokens
    token_ids_T: Tensor | None = None  # int64 vocabulary ids; -1: an image token
    previous_T: Tensor | None = None  # int64 first choices of the part's MoE layer before
    recording: bool = True  # False where a backward runs the forward again: count nothing twice


@dataclass(frozen=True)
class RouterSpec:
    """Where a router stands and what its part's MoEConfig says; all that it is built from."""

    width: int  # D
    out_width: int  # O
    num_experts: int
    top_k: int
    seed: int  # the layer's own
    options: Mapping[str, Any] = field(default_factory=dict)  # MoEConfig.router_options
    vocab_size: int | None = None  # of the part's tokens; None where they have no ids
    previous: "Router | None" = None  # of the part's MoE layer before; None in the first


class Routing(NamedTuple):
    """Which experts take each token, with what weight.

    K is the number of columns: top_k of a router that gives each token as many experts, E of one
    that gives a token any number.
    """

    ids_TK: Tensor  # int64 in 0..E; E means "no expert": costs nothing, its weight is 0
    weights_TK: Tensor  # dtype of x
    losses: dict[str, Tensor]  # unweighted float32 scalars, named in Router.loss_weights
    metrics: dict[str, Tensor]  # detached float32 scalars, for the log only
    scores_TE: Tensor  # detached float32; by these, descending, the router ranks a token's experts
    outputs_TKO: Tensor | None = None  # the chosen experts' outputs, if the router has run them
    most_pairs: int | None = None  # no more (token, expert) pairs than this; None: T*K
    residual_TO: Tensor | None = None  # added to the mixture's output


@dataclass(frozen=True)
class NoOptions:
    """Options of a router that has none."""


class Router(nn.Module):
    """Chooses experts for tokens; ``spec`` is all a router is built from."""

    # The form of MoEConfig.router_options: a frozen dataclass that refuses impossible values.
    Options: ClassVar[type[Any]] = NoOptions
    # The losses a router may return, with its paper's coefficients.
    loss_weights: ClassVar[Mapping[str, float]] = MappingProxyType({})
    competes: ClassVar[bool] = False  # does it heed context.competing?
    sums_to_one: bool = True  # do a token's weights? If not, upcycling moves the output
    needs_token_ids: ClassVar[bool] = False  # of context.token_ids_T
    needs_previous: ClassVar[bool] = False  # of context.previous_T, in all layers but the first
    sees_future: bool = False  # can a later token change an earlier one's experts at inference?

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.options = self.Options(**spec.options)

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: Any) -> None:
        """ValueError where E, K and ``options`` do not fit together."""

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        """The experts of each token; a router that runs experts itself hands their outputs back."""
        raise TypeError(f"{type(self).__name__} does not say how it routes")

    def reset_parameters(self) -> None:
        """Initial values of parameters and state; a router without either has nothing to do."""

    def begin_step(self, step: int, max_steps: int) -> None:
        """Called on every rank before optimizer step ``step`` (from 0) of a training."""

    def end_step(self) -> None:
        """Called on every rank after an optimizer step: state that changes once a step."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # State whose name begins with state_ moves by less than bfloat16 can tell: it keeps its
        # dtype when a model is cast.
        state = {
            name: buffer for name, buffer in self._buffers.items() if name.startswith("state_")
        }
        super()._apply(fn, recurse)
        for name, before in state.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


def reset_router(router: Router) -> None:
    """Initial values of a router whose parameters ZeRO-3 may have spread over the ranks."""
    parameters = list(router.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            router.reset_parameters()
    else:
        router.reset_parameters()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every rank's tensor, in place; the tensor itself where there is one rank."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value
