"""HyperMoE (arXiv:2402.12656): what a token's unselected experts know reaches it as an adapter.

T tokens, E experts, K chosen per token, S = C(E, K) sets of chosen experts, D width, O output
width, H adapter width, C condition width, P numbers that make an adapter.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import Router, RouterSpec, Routing, RoutingContext

EXPERT_WIDTH = 128  # of an expert's embedding, and of the network on their sum
LAYER_WIDTH = 10  # of a layer's embedding
BOTTLENECK = 128  # of the hypernetwork
MOST_SETS = 128  # adapters a layer makes in every forward
NOISE = math.log(2) + 1e-2  # deviation of the noise on logits at the start of Shazeer's training
EPSILON = 1e-10  # in cv_squared, the sources'


@dataclass(frozen=True)
class HyperMoEOptions:
    """Hyper-parameters of the generated adapters."""

    adapter_width: int = 64

    def __post_init__(self) -> None:
        if self.adapter_width < 1:
            raise ValueError(f"adapter_width={self.adapter_width} must be at least 1")


class HyperNetwork(nn.Module):
    """Condition (S, C) -> the numbers of an adapter D -> H -> O (S, P); one for all layers.

    They are the map down (H, D) and its bias, the map up (H, O) and its bias.
    """

    def __init__(self, width: int, out_width: int, adapter_width: int) -> None:
        super().__init__()
        self.width = width
        self.sizes = (adapter_width * width, adapter_width, adapter_width * out_width, out_width)
        self.hidden = nn.Linear(EXPERT_WIDTH + LAYER_WIDTH, BOTTLENECK)
        self.head = nn.Linear(BOTTLENECK, sum(self.sizes))

    def forward(self, condition_SC: Tensor) -> Tensor:
        return self.head(self.hidden(condition_SC).relu())

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Maps up of zero, so that an adapter adds nothing; maps down about a linear layer's."""
        _reset_linear(self.hidden, generator)
        numbers, down = sum(self.sizes), sum(self.sizes[:2])
        for parameter, shape in (
            (self.head.weight, (numbers, BOTTLENECK)),
            (self.head.bias, (numbers,)),
        ):
            values = _uniform(shape, (math.prod(shape[1:]) * self.width) ** -0.5, generator)
            values[down:] = 0
            _set(parameter, values)


class HyperMoERouter(Router):
    """Plain top-K; to the mixture is added A_s(t)(x), the adapter of the set of chosen experts.

    The embeddings of the experts a token has not chosen are summed (128), go through a network
    (128, ReLU, 128), are joined with the layer's embedding (10) and become, by one hypernetwork of
    all layers of the part (bottleneck 128, ReLU), an adapter A(x) = up relu(down x + a) + b of
    width 64. Experts' embeddings and the first network are each layer's own.

    The adapter is a function of the set of chosen experts alone. The official code makes one per
    token; here each of the C(E, K) sets gets one, and every token meets its own set's: the same
    function, at 2 H (D + O) C(E, K) operations a token, so C(E, K) may be 128 at most.

    Losses: "balance" is cv^2(importance) + cv^2(load), weight 0.01, with Shazeer's importance
    (mean weight of an expert) and load (arXiv:1701.06538, eq. 6-11). No noise is put on the
    logits, here or in evaluation: a choice is the same in every recomputation and on every
    machine. Hard counts have no gradient, and at K = 1 neither has the importance, so the load is
    the one that noise would give on average: Phi((z_e - threshold) / deviation), with the noise's
    deviation at the start of Shazeer's training, softplus(0) + 0.01. (The official code compares
    logits with thresholds that are probabilities; here both are logits.)

    The map up begins at zero, where the official code's is tiny (1e-3 of the usual bound): an
    upcycled model is the dense one exactly. The first step so moves the maps up alone, as in LoRA.
    K = E leaves no expert unselected and is refused.
    """

    Options = HyperMoEOptions
    loss_weights = MappingProxyType({"balance": 0.01})
    options: HyperMoEOptions

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        self.gate = nn.Linear(spec.width, spec.num_experts, bias=False)
        self.expert_embeddings = nn.Parameter(torch.empty(spec.num_experts, EXPERT_WIDTH))
        self.layer_embedding = nn.Parameter(torch.empty(LAYER_WIDTH))
        self.selection = nn.Sequential(
            nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH), nn.ReLU(), nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH)
        )
        if spec.previous is None:
            self.hypernetwork = HyperNetwork(spec.width, spec.out_width, self.options.adapter_width)
            self._shared = (self.hypernetwork,)
        else:
            assert isinstance(spec.previous, HyperMoERouter)
            _check_widths(spec.previous.spec, spec)
            # In a tuple: an attribute would be a part of this layer too, and saved once a layer.
            self._shared = spec.previous._shared
        # A constant and no buffer, which loading would have to fill.
        sets = combinations(range(spec.num_experts), spec.top_k)
        rows = [[expert in chosen for expert in range(spec.num_experts)] for chosen in sets]
        self._sets_SE = torch.tensor(rows, device="cpu")
        self.reset_parameters()

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: HyperMoEOptions) -> None:
        """ValueError where no expert is left unselected, or there are too many sets."""
        if top_k == num_experts:
            raise ValueError(
                f"top_k={top_k} of num_experts={num_experts} leaves no expert unselected, whose "
                f"knowledge hypermoe could add; choose fewer"
            )
        if (sets := math.comb(num_experts, top_k)) > MOST_SETS:
            raise ValueError(
                f"top_k={top_k} of num_experts={num_experts}: hypermoe makes an adapter for each "
                f"of the {sets} sets of chosen experts, {MOST_SETS} at most; choose fewer experts"
            )

    def reset_parameters(self) -> None:
        """The gate as topk's, embeddings Normal(0, 1), the rest like nn.Linear; from the seed."""
        if self.gate.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.spec.seed)
        experts = self.spec.num_experts
        _set(self.gate.weight, 0.02 * _normal((experts, self.spec.width), generator))
        _set(self.expert_embeddings, _normal((experts, EXPERT_WIDTH), generator))
        _set(self.layer_embedding, _normal((LAYER_WIDTH,), generator))
        for module in self.selection:
            if isinstance(module, nn.Linear):
                _reset_linear(module, generator)
        if self.spec.previous is None:
            self.hypernetwork.reset_parameters(generator)

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        logits_TE = self.gate(x_TD).float()
        probs_TE = logits_TE.softmax(dim=-1)
        chosen_TK, ids_TK = probs_TE.topk(self.spec.top_k, dim=-1)
        weights_TK = chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
        weights_TE = torch.zeros_like(probs_TE).scatter(-1, ids_TK, weights_TK)
        load_TE = expected_load(logits_TE, self.spec.top_k)
        return Routing(
            ids_TK=ids_TK,
            weights_TK=weights_TK.to(x_TD.dtype),
            losses={
                "balance": cv_squared(weights_TE, context.mask_T)
                + cv_squared(load_TE, context.mask_T)
            },
            metrics={},
            scores_TE=logits_TE.detach(),
            residual_TO=self._adapt(x_TD, ids_TK),
        )

    def _adapt(self, x_TD: Tensor, ids_TK: Tensor) -> Tensor:
        """The adapter's output (T, O) of each token's set."""
        if self._sets_SE.device != x_TD.device:
            self._sets_SE = self._sets_SE.to(x_TD.device)
        sets_SE = self._sets_SE.to(x_TD.dtype)
        chosen_TE = F.one_hot(ids_TK, self.spec.num_experts).sum(dim=1).to(x_TD.dtype)
        # Of K chosen experts K are in a token's own set and in no other.
        own_TS = chosen_TE @ sets_SE.T == self.spec.top_k

        unselected_SC = self.selection((1 - sets_SE) @ self.expert_embeddings)
        layer_SC = self.layer_embedding.to(unselected_SC.dtype).expand(len(sets_SE), -1)
        numbers_SP = self._shared[0](torch.cat([unselected_SC, layer_SC], dim=-1))
        down_SHD, down_SH, up_SHO, up_SO = numbers_SP.split(self._shared[0].sizes, dim=-1)

        width = self.options.adapter_width
        down_ID = down_SHD.reshape(-1, self.spec.width)  # I = S * H
        hidden_TI = F.linear(x_TD, down_ID, down_SH.reshape(-1)).relu()
        own_TI = own_TS.repeat_interleave(width, dim=1)
        hidden_TI = torch.where(own_TI, hidden_TI, 0.0)
        bias_TO = own_TS.to(up_SO.dtype) @ up_SO
        return hidden_TI @ up_SHO.reshape(-1, self.spec.out_width) + bias_TO


def cv_squared(values_TE: Tensor, mask_T: Tensor | None) -> Tensor:
    """Squared coefficient of variation over the experts of the kept tokens' mean values; float32.

    (Sample variance, as the official code has it.) 0 where no token is kept.
    """
    if mask_T is None:
        mean_E = values_TE.mean(dim=0)
    else:
        kept_TE = torch.where(mask_T[:, None], values_TE, 0.0)
        mean_E = kept_TE.sum(dim=0) / mask_T.sum().clamp(min=1)
    return mean_E.var() / (mean_E.mean().square() + EPSILON)


def expected_load(logits_TE: Tensor, top_k: int) -> Tensor:
    """Chance that an expert is among the K if its logit alone were drawn again with noise (T, E).

    Shazeer et al., eq. 9: the threshold is the K-th largest of the other experts' logits.
    """
    best_TK = logits_TE.topk(top_k + 1, dim=-1).values
    last_T1, next_T1 = best_TK[:, -2:-1], best_TK[:, -1:]
    threshold_TE = torch.where(logits_TE > next_T1, next_T1, last_T1)
    return torch.special.ndtr((logits_TE - threshold_TE) / NOISE)


def _check_widths(first: RouterSpec, spec: RouterSpec) -> None:
    if (first.width, first.out_width) != (spec.width, spec.out_width):
        raise ValueError(
            f"hypermoe shares one hypernetwork over the layers of a part, which maps "
            f"{first.width} -> {first.out_width} there and {spec.width} -> {spec.out_width} here; "
            f"choose layers of one width (layers) or another router"
        )


def _reset_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    bound = linear.in_features**-0.5
    _set(linear.weight, _uniform((linear.out_features, linear.in_features), bound, generator))
    _set(linear.bias, _uniform((linear.out_features,), bound, generator))


# On the CPU and in float32 by name: zero.Init and loading change both defaults.
def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    values = torch.empty(shape, device="cpu").float()
    return values.uniform_(-bound, bound, generator=generator)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape, device="cpu").float().normal_(generator=generator)


@torch.no_grad()
def _set(parameter: Tensor, values: Tensor) -> None:
    if parameter.numel():  # 0: ZeRO-3 keeps it elsewhere, and gathers it to be set
        parameter.copy_(values)
