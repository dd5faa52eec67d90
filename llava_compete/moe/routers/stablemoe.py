"""StableMoE (arXiv:2204.08396): learn to route, distil it into a light router, freeze that.

T tokens, E experts, K chosen per token, D width, V vocabulary, L width of the light router.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_compete.moe import losses
from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import Router, RouterSpec, Routing, RoutingContext
from llava_compete.moe.routers.compete import agreement
from llava_compete.moe.routers.token_ids import token_ids, vocabulary

LIGHT_WIDTH = 50  # L, the paper's
LIGHT_GAIN = 0.1  # of the light router's orthogonal centroids, the official code's
GATE_STD = 0.02
MOST_EXPERTS = 256  # ids of the frozen assignment are uint8


def score_balance(scores_TE: Tensor, ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """sum_i (n_i - n)/n * (the scores of the tokens sent to i), over the number of tokens.

    n_i tokens are sent to expert i, n to an expert in the mean. Raises the scores of experts with
    too few tokens and lowers those of experts with too many; 0 under even load.
    """
    num_experts = scores_TE.shape[-1]
    excess_E = num_experts * losses.choice_share(ids_TK, num_experts, mask_T) - 1
    sent_TK = excess_E[ids_TK] * scores_TE.gather(1, ids_TK)
    return losses.mean_over_tokens(sent_TK.sum(dim=-1), mask_T)


def light_distillation(light_TE: Tensor, ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Cross-entropy of the light router's logits to the chosen experts, each 1/K of the target."""
    chosen_TK = light_TE.log_softmax(dim=-1).gather(1, ids_TK)
    return -losses.mean_over_tokens(chosen_TK.mean(dim=-1), mask_T)


class ImageGate(nn.Linear):
    """A linear gate that can hand out its map."""

    def forward(self, x_TD: Tensor | None = None) -> Tensor:
        """Logits (T, E); without tokens a float32 copy of the map (E, D).

        Under ZeRO-3 the map is there only while its own module runs.
        """
        if x_TD is None:
            return self.weight.detach().float().clone()
        return super().forward(x_TD)


@dataclass(frozen=True)
class StableMoEOptions:
    """When the routing is frozen."""

    stage_one: float = 0.1  # share of the steps; the paper: 6,000 of 60,000

    def __post_init__(self) -> None:
        if not 0 < self.stage_one <= 1:
            raise ValueError(f"stage_one={self.stage_one} must be above 0 and at most 1")


class StableMoERouter(Router):
    """Stage one: the K largest z = W x. Stage two: what the light router says of the token's id.

    In both a chosen expert's weight is sigmoid(z_k). The paper's layer is sigmoid(z) E(x) +
    (1 - sigmoid(z)) x with experts E(x) = x + FFN(x), which is x + sigmoid(z) FFN(x): the identity
    term is the residual connection around this layer. Weights do not sum to 1, so upcycling moves
    the output (a fresh gate's are about 1/2 each).

    The light router is an embedding of the vocabulary (width 50) with a linear map to E, of each
    layer its own. Image tokens have no id; theirs is a linear gate on the token's hidden state,
    without gradient to it. So an image token's experts may still change in stage two, as its
    hidden state does, but not for the same state.

    Losses of stage one: "balance" (``score_balance``) and "light" (``light_distillation`` to the
    choice of z), 0.3 each; in stage two both are 0. The metric ``light_agreement`` is the share of
    z's choices that the light router makes too: look at it, because the learning rate of a
    fine-tuning may be too small for a fresh light router (``part_learning_rates`` of routers).

    The first forward of the first step that is not below ``stage_one`` of all steps writes what
    the light router says into ``state_assignment`` and ``state_image_gate``, and from then on these
    route: momentum and weight decay may go on moving the light router's parameters, and nobody
    reads them. A checkpoint of stage two stays in stage two, also in a further training; fresh
    routers begin again. A training that leaves the routers as they are leaves the stage too.

    Departures: K experts where the paper has one; no capacity (there 2) and no exchange of tokens
    between ranks; balance counts the tokens of one micro-batch on one rank; in stage one evaluation
    routes by z, where the official code takes the light router.
    """

    Options = StableMoEOptions
    loss_weights = MappingProxyType({"balance": 0.3, "light": 0.3})
    sums_to_one = False
    needs_token_ids = True
    options: StableMoEOptions
    state_stage: Tensor  # int64 (); 1 or 2
    state_assignment: Tensor  # uint8 (V, K); an id's experts, the first one first
    state_image_gate: Tensor  # float32 (E, D)
    freeze_due: bool = False  # set by begin_step; the forward that freezes clears it
    froze: bool = False  # once in a training is enough

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        size, num_experts = vocabulary(spec), spec.num_experts
        self.gate = nn.Linear(spec.width, num_experts, bias=False)
        self.light_embedding = nn.Embedding(size, LIGHT_WIDTH)
        self.light_centroids = nn.Linear(LIGHT_WIDTH, num_experts, bias=False)
        self.light_image_gate = ImageGate(spec.width, num_experts, bias=False)
        self.register_buffer("state_stage", torch.ones((), dtype=torch.int64))
        self.register_buffer("state_assignment", torch.zeros(size, spec.top_k, dtype=torch.uint8))
        # float() behind it: under ZeRO-3 a new tensor comes in the model's dtype.
        self.register_buffer("state_image_gate", torch.zeros(num_experts, spec.width).float())
        self.reset_parameters()

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: Any) -> None:
        """ValueError where there are more experts than ids of the frozen assignment."""
        if num_experts > MOST_EXPERTS:
            raise ValueError(
                f"num_experts={num_experts} must be at most {MOST_EXPERTS}: stablemoe keeps a "
                f"byte for each expert of a vocabulary id"
            )

    def reset_parameters(self) -> None:
        """Fresh gates and light router, in stage one."""
        if self.gate.weight.is_meta:
            return
        for weight, values in self._initial_values():
            if weight.numel():  # 0: ZeRO-3 keeps it elsewhere, and gathers it to be set
                with torch.no_grad():
                    weight.copy_(values)
        self.state_stage.fill_(1)
        self.state_assignment.zero_()
        self.state_image_gate.zero_()
        self.freeze_due = self.froze = False

    def _initial_values(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.spec.seed)

        def normal(*shape: int) -> Tensor:
            # The device by name: zero.Init makes another one the default while a model is built.
            return torch.randn(shape, generator=generator, device="cpu").float()

        num_experts, width = self.spec.num_experts, self.spec.width
        yield self.gate.weight, normal(num_experts, width) * GATE_STD
        yield self.light_embedding.weight, normal(vocabulary(self.spec), LIGHT_WIDTH)
        centroids_EL = torch.empty(num_experts, LIGHT_WIDTH, device="cpu").float()
        nn.init.orthogonal_(centroids_EL, gain=LIGHT_GAIN, generator=generator)
        yield self.light_centroids.weight, centroids_EL
        yield self.light_image_gate.weight, normal(num_experts, width) * GATE_STD

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        ids_T, top_k = token_ids(context, len(x_TD)), self.spec.top_k
        if self.freeze_due and self.training and context.recording:
            self._freeze(ids_T.device)
        logits_TE = self.gate(x_TD).float()
        learned_TK = logits_TE.topk(top_k, dim=-1).indices
        light_TE = self._light(ids_T, x_TD.detach())
        frozen_TE = self._frozen(ids_T, x_TD.detach())
        # Chosen on the device: the host would have to wait for it to know the stage. So the light
        # router has a gradient in both stages, of 0 in the second, and all ranks gather alike.
        learning = self.state_stage == 1
        ids_TK = torch.where(learning, learned_TK, frozen_TE.topk(top_k, dim=-1).indices)
        scores_TE = logits_TE.sigmoid()
        found = {
            "balance": score_balance(scores_TE, learned_TK, context.mask_T),
            "light": light_distillation(light_TE, learned_TK, context.mask_T),
        }
        light_TK = torch.where(learning, light_TE.topk(top_k, dim=-1).indices, ids_TK)
        return Routing(
            ids_TK=ids_TK,
            weights_TK=scores_TE.gather(1, ids_TK).to(x_TD.dtype),
            losses={name: torch.where(learning, loss, 0.0) for name, loss in found.items()},
            metrics={"light_agreement": agreement(light_TK, learned_TK, context.mask_T)},
            scores_TE=torch.where(learning, logits_TE, frozen_TE).detach(),
        )

    def _by_id(self, ids_T: Tensor) -> Tensor:
        return self.light_centroids(self.light_embedding(ids_T)).float()

    def _light(self, ids_T: Tensor, x_TD: Tensor) -> Tensor:
        """The light router's logits, (T, E)."""
        text_TE, image_TE = self._by_id(ids_T.clamp(min=0)), self.light_image_gate(x_TD).float()
        return torch.where(ids_T[:, None] < 0, image_TE, text_TE)

    def _frozen(self, ids_T: Tensor, x_TD: Tensor) -> Tensor:
        """Scores by which stage two chooses, (T, E); -inf for what the assignment leaves out."""
        chosen_TK = self.state_assignment[ids_T.clamp(min=0)].long()
        text_TE = x_TD.new_full((len(x_TD), self.spec.num_experts), float("-inf")).float()
        order_K = -torch.arange(self.spec.top_k, device=x_TD.device).float()
        text_TE = text_TE.scatter(1, chosen_TK, order_K.expand_as(chosen_TK))
        with torch.autocast(x_TD.device.type, enabled=False):
            image_TE = F.linear(x_TD.float(), self.state_image_gate)
        return torch.where(ids_T[:, None] < 0, image_TE, text_TE)

    def begin_step(self, step: int, max_steps: int) -> None:
        """Stage two is due from ``stage_one`` of the steps on."""
        trained = self.light_embedding.weight.requires_grad
        late = step >= self.options.stage_one * max_steps
        self.freeze_due = trained and late and not self.froze

    @torch.no_grad()
    def _freeze(self, device: torch.device) -> None:
        """Stage two begins; nothing changes where it has begun already, in a run before this."""
        with torch.autocast(device.type, enabled=False):
            light_VE = self._by_id(torch.arange(len(self.state_assignment), device=device))
        image_ED = self.light_image_gate()
        for state, value in (
            (self.state_assignment, light_VE.topk(self.spec.top_k, dim=-1).indices.byte()),
            (self.state_image_gate, image_ED),
        ):
            state.copy_(torch.where(self.state_stage == 1, value, state))
        self.state_stage.fill_(2)
        self.freeze_due, self.froze = False, True
