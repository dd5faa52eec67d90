"""MaskMoE (arXiv:2407.09816): a token sees only the experts that its vocabulary id was dealt.

T tokens, E experts, K chosen per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.across import places
from llava_compete.moe.routers.base import RouterSpec, Routing, RoutingContext
from llava_compete.moe.routers.token_ids import token_ids, vocabulary
from llava_compete.moe.routers.topk import TopKRouter, token_choice

BITS = 0xFFFFFFFF  # of a hash


def scramble(numbers: Tensor) -> Tensor:
    """A hash, 0 to 2^32 - 1, of whole numbers in that range; int64, alike on every device."""
    for _ in range(2):
        # 32 bits times 27 bits stay below 2^63: no overflow.
        numbers = ((numbers ^ (numbers >> 16)) * 0x45D9F3B) & BITS
    return numbers ^ (numbers >> 16)


def dealt(seed: Tensor, ids_T: Tensor, num_experts: int) -> Tensor:
    """Place of each expert in the order dealt to an id, int64 (T, E): 0 for the first.

    A function of (seed, id): each of the orders is as likely as any other.
    """
    experts_E = torch.arange(num_experts, device=ids_T.device)
    hash_T = scramble((scramble(seed & BITS) + ids_T) & BITS)
    return places(scramble((hash_T[:, None] + experts_E) & BITS))


@dataclass(frozen=True)
class MaskMoEOptions:
    """Which ids are frequent, and how many experts those see."""

    frequent_share: float = 0.1  # of the vocabulary, by order of ids
    visible: int | None = None  # experts a frequent id sees; None: all

    def __post_init__(self) -> None:
        if not 0 <= self.frequent_share <= 1:
            raise ValueError(f"frequent_share={self.frequent_share} must be between 0 and 1")
        if self.visible is not None and self.visible < 1:
            raise ValueError(f"visible={self.visible} must be at least 1")


class MaskMoERouter(TopKRouter):
    """z + m_id, then plain top-K; m is 0 for the V experts that the id was dealt, else -inf.

    V = K for infrequent ids, so they always have the same experts and the gate gives the weights
    alone; V = ``visible`` for frequent ones. The experts are drawn at random once for each id and
    layer. The paper has top-1 and V = 1 for infrequent ids; with V = 1 and K = 2 they would have
    half the active parameters of the others, so V is K here, which at K = 1 is the paper's. Image
    tokens have no id and see all experts. Balance and z-loss are those of ``topk``, on what a
    token sees.

    Frequent are the first ``frequent_share`` of the vocabulary. That stands in for counts, which a
    router does not have: the ids of a byte-pair tokenizer are in the order of its merges, hence
    about that of frequency. Bytes come before them however rare, and added tokens, such as chat
    markers, last however frequent. The paper's threshold, its V for frequent ids and its balance
    coefficient were not found, and no official code: 0.1, all experts and 0.01 are choices made
    here.

    The draw is a hash of id and ``state_seed``. That is saved with the weights, because a layer's
    own seed follows from its number in the model, which experts in further parts would change; and
    there is no table to be lost, to broadcast, or to fill when loading.
    """

    Options = MaskMoEOptions
    needs_token_ids = True
    options: MaskMoEOptions
    state_seed: Tensor  # int64 (), of the draw

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        self.frequent = round(self.options.frequent_share * vocabulary(spec))
        self.register_buffer("state_seed", torch.full((), spec.seed, dtype=torch.int64))

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: MaskMoEOptions) -> None:
        """ValueError where a frequent id would see fewer than K experts, or more than all."""
        if options.visible is not None and not top_k <= options.visible <= num_experts:
            raise ValueError(
                f"visible={options.visible} must be between top_k={top_k} and "
                f"num_experts={num_experts}"
            )

    def reset_parameters(self) -> None:
        """The gate as TopKRouter's; the draw by the layer's own seed."""
        super().reset_parameters()
        for seed in self.buffers():  # none yet while the gate is being built
            seed.fill_(self.spec.seed)

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        ids_T = token_ids(context, len(x_TD))
        logits_TE = self.gate(x_TD).float().masked_fill(~self.visible(ids_T), float("-inf"))
        # By logits: a probability may be 0 in float32, and an expert unseen must not tie with it.
        chosen_TK, ids_TK = logits_TE.topk(self.spec.top_k, dim=-1)
        weights_TK = chosen_TK.softmax(dim=-1)
        return token_choice(x_TD, logits_TE, logits_TE.softmax(dim=-1), ids_TK, weights_TK, context)

    def visible(self, ids_T: Tensor) -> Tensor:
        """Which experts a token of that id sees, bool (T, E)."""
        num_experts = self.spec.num_experts
        of_frequent = num_experts if self.options.visible is None else self.options.visible
        count_T = torch.where(ids_T < self.frequent, of_frequent, self.spec.top_k)
        count_T = torch.where(ids_T < 0, num_experts, count_T)
        return dealt(self.state_seed, ids_T, num_experts) < count_T[:, None]
