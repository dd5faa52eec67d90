"""The MoE layer that stands where a dense feed-forward layer stood.

B batch, L sequence, T = B*L tokens, E experts, K chosen per token, D width in, O width out.
"""

import torch
from torch import Tensor, nn

from llava_compete.moe.config import MoEConfig
from llava_compete.moe.experts import Experts
from llava_compete.moe.losses import choice_share
from llava_compete.moe.routers import ROUTERS, Router, RouterSpec, Routing, RoutingContext
from llava_compete.moe.sequences import Sequences


class MoELayer(nn.Module):
    """Router + experts; knows no router by name. Maps (B, S, D) or (T, D) to the same with O.

    ``index`` numbers the MoE layers of the model and makes their gates differ; ``previous`` is
    the MoE layer before it in its part, ``vocab_size`` that of the part's tokens, if they have ids.
    """

    # Step state. Plain attributes rather than arguments, because a decoder layer calls
    # `self.mlp(x)`, and because activation checkpointing must see the same values again when it
    # recomputes the forward in the backward.
    competing: bool = False  # set by the trainer for one optimizer step
    mask_T: Tensor | None = None  # set by the model before the forward, holds until its backward
    token_ids_T: Tensor | None = None  # likewise, for a router that needs them
    sequences: Sequences | None = None  # likewise, where they are packed
    first_choice_T: Tensor | None = None  # left by the last forward for the layer behind
    routing: Routing | None = None  # left by the last forward; the model takes it
    weak_rank: int | None = None  # set by self_contrast for the span of a weak pass
    # Set by the model for the span of its forward. What activation checkpointing runs again in
    # the backward leaves nothing: that graph would be kept until the next forward.
    recording: bool = True

    def __init__(
        self,
        experts: Experts,
        config: MoEConfig,
        *,
        index: int,
        previous: "MoELayer | None" = None,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.router: Router = ROUTERS[config.router](
            RouterSpec(
                width=experts.in_features,  # a weight's own shape is empty under ZeRO-3
                out_width=experts.out_features,
                num_experts=config.num_experts,
                top_k=config.top_k,
                seed=config.seed + index,
                options=config.router_options,
                vocab_size=vocab_size,
                previous=None if previous is None else previous.router,
            )
        )
        # In a tuple: a module that is an attribute would be a part of this layer.
        self._previous = () if previous is None else (previous,)

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        sequences = self.sequences
        if sequences is None and x.dim() == 3:
            sequences = Sequences(x.shape[-2])
        # Competition is a way of training: an evaluation between two steps must not see it.
        context = RoutingContext(
            mask_T=self.mask_T,
            competing=self.competing and self.training,
            sequences=sequences,
            token_ids_T=self.token_ids_T,
            previous_T=self._previous[0].first_choice_T if self._previous else None,
            recording=self.recording,
        )
        routing = self.router(x_TD, self.experts, context)
        if self.weak_rank is not None:
            routing = expert_of_rank(routing, self.weak_rank)
        if routing.outputs_TKO is None:
            y_TO = self.experts(x_TD, routing.ids_TK, routing.weights_TK, routing.most_pairs)
        else:
            y_TO = (routing.weights_TK[..., None] * routing.outputs_TKO).sum(dim=1)
        if routing.residual_TO is not None:
            y_TO = y_TO + routing.residual_TO
        self.first_choice_T = routing.ids_TK[:, 0]
        if self.recording:  # free what only this forward needs
            self.routing = routing._replace(outputs_TKO=None)
        return y_TO.view(*x.shape[:-1], -1)

    @property
    def last_routing(self) -> Routing:
        """``routing``, where there has been a forward since the model took it."""
        assert self.routing is not None, "no forward since the routing was taken"
        return self.routing

    def load_E(self) -> Tensor:
        """Share of the last forward's kept pairs that each expert received, (E,) float32."""
        return choice_share(self.last_routing.ids_TK, self.experts.num_experts, self.mask_T)


def expert_of_rank(routing: Routing, rank: int) -> Routing:
    """Each token to the expert that the router ranks so (1: its first) alone, with weight 1."""
    ids_T1 = routing.scores_TE.topk(rank, dim=-1).indices[:, rank - 1 :]
    return routing._replace(
        ids_TK=ids_T1,
        weights_TK=torch.ones_like(ids_T1, dtype=routing.weights_TK.dtype),
        outputs_TKO=None,
        most_pairs=None,
    )
