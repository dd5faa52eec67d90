"""E feed-forward nets with stacked weights.

T tokens, E experts, K chosen per token, D input width, F hidden width, O output width. A gated
expert is ``down(act(gate x) * (up x))``; a plain one ``down(act(up x))``.

The weights are stacked because under ZeRO-3 a list of experts of which each rank calls others
makes the ranks gather different parameters; one stacked parameter is gathered by all alike.
"""

from typing import overload

import torch
from torch import Tensor, nn

from llava_compete.moe.competition import Competition, compete
from llava_compete.moe.elementwise import Elementwise, shared_activation
from llava_compete.moe.grouping import group_pairs
from llava_compete.moe.mixture import Weights, mix


class Experts(nn.Module):
    """Runs the experts that a router chose, or lets all of them compete.

    ``up_proj`` (E, D, F), with a gate ``gate_proj`` (E, D, F), ``down_proj`` (E, O, F), maybe
    biases: so laid out, every product of forward and backward reads its operands as they lie.
    """

    # Bytes that a competition may keep for its backward, beyond which it runs again, in spans of
    # tokens that take no more; None: no bound.
    competition_budget: int | None = None

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        activation: str,
        gated: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.activation = activation
        self.elementwise = Elementwise(shared_activation(activation), compiled=False)
        self.gated = gated
        for name in self.inner_names():
            weight = torch.empty(num_experts, in_features, hidden_features)
            self.register_parameter(f"{name}_proj", nn.Parameter(weight))
        self.down_proj = nn.Parameter(torch.empty(num_experts, out_features, hidden_features))
        for name, width in self._biases().items():
            values = nn.Parameter(torch.empty(num_experts, width)) if bias else None
            self.register_parameter(name, values)
        self.reset_parameters()

    def inner_names(self) -> tuple[str, ...]:
        """Of the projections into the hidden units."""
        return ("gate", "up") if self.gated else ("up",)

    def _biases(self) -> dict[str, int]:
        inner = {f"{name}_bias": self.hidden_features for name in self.inner_names()}
        return {**inner, "down_bias": self.out_features}

    def weights(self) -> dict[str, nn.Parameter]:
        """The stacked matrices by name."""
        names = [f"{name}_proj" for name in self.inner_names()]
        return {name: self.get_parameter(name) for name in (*names, "down_proj")}

    def reset_parameters(self) -> None:
        """Like nn.Linear, each expert on its own; meta tensors are left alone."""
        for name in (*self.inner_names(), "down"):
            fan_in = self.hidden_features if name == "down" else self.in_features
            bound = fan_in**-0.5
            nn.init.uniform_(self.get_parameter(f"{name}_proj"), -bound, bound)
            if self.down_bias is not None:
                nn.init.uniform_(self.get_parameter(f"{name}_bias"), -bound, bound)

    def compile_elementwise(self) -> None:
        """From now on by torch.compile, which needs a C++ compiler on the CPU, Triton on a GPU."""
        self.elementwise = self.elementwise._replace(compiled=True)

    @overload
    def forward(
        self, x_TD: Tensor, *, winners: int, losers_gradient: bool = True
    ) -> Competition: ...
    @overload
    def forward(
        self,
        x_TD: Tensor,
        ids_TK: Tensor,
        weights_TK: Tensor,
        most_pairs: int | None = None,
    ) -> Tensor: ...
    def forward(
        self,
        x_TD: Tensor,
        ids_TK: Tensor | None = None,
        weights_TK: Tensor | None = None,
        most_pairs: int | None = None,
        *,
        winners: int | None = None,
        losers_gradient: bool = True,
    ) -> Tensor | Competition:
        """Weighted sum (T, O) of the outputs of the experts named by ``ids_TK`` in 0..E.

        An id of E means "no expert": that pair costs nothing and adds nothing. Where no more than
        ``most_pairs`` of the T*K pairs have an expert, memory is taken for these alone. With
        ``winners`` instead all experts run and the Competition for that many places is returned
        (``losers_gradient``: see there).
        """
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):  # autocast does not know these operators
            x_TD = x_TD.to(torch.get_autocast_dtype(device))
        weights = self._weights(x_TD.dtype)
        with torch.autocast(device, enabled=False):
            if winners is not None:
                return compete(
                    x_TD,
                    winners,
                    weights,
                    self.elementwise,
                    self.competition_budget,
                    losers_gradient=losers_gradient,
                )
            assert ids_TK is not None
            assert weights_TK is not None
            groups = group_pairs(ids_TK, self.num_experts, x_TD.dtype, most_pairs)
            return mix(x_TD, weights_TK.to(x_TD.dtype), groups, weights, self.elementwise)

    def all_outputs(self, x_TD: Tensor) -> Tensor:
        """Of every expert in order, (T, E, O)."""
        found: Competition = self(x_TD, winners=self.num_experts)
        place_TE = found.ids_TK.argsort(dim=-1)
        return found.outputs_TKO.gather(1, place_TE[..., None].expand(-1, -1, self.out_features))

    def _weights(self, dtype: torch.dtype) -> Weights:
        names = ("up_proj", "down_proj", "gate_proj", "up_bias", "down_bias", "gate_bias")
        given = (self._parameters.get(name) for name in names)
        return Weights(*(None if weight is None else weight.to(dtype) for weight in given))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
        return f"{shapes}, activation={self.activation}"
