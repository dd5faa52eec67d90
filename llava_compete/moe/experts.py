"""E feed-forward nets with stacked weights.

T tokens, E experts, K chosen per token, N = T*K pairs, D input width, F hidden width, O output
width. A gated expert is ``down(act(gate x) * (up x))``; a plain one ``down(act(up x))``.

The weights are stacked because under ZeRO-3 a list of experts of which each rank calls others
makes the ranks gather different parameters; one stacked parameter is gathered by all alike.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN


class Experts(nn.Module):
    """Runs the chosen experts, or all of them, on each token and returns their outputs unweighted.

    ``gate_up_proj`` (E, 2F, D) or ``up_proj`` (E, F, D), ``down_proj`` (E, O, F): the layout of
    transformers' MoE families.
    """

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
        self.hidden_features = hidden_features
        self.activation = activation
        self.gated = gated
        up_features = 2 * hidden_features if gated else hidden_features
        self.first_name = "gate_up_proj" if gated else "up_proj"
        up = nn.Parameter(torch.empty(num_experts, up_features, in_features))
        self.register_parameter(self.first_name, up)
        self.down_proj = nn.Parameter(torch.empty(num_experts, out_features, hidden_features))
        self.up_bias = nn.Parameter(torch.empty(num_experts, up_features)) if bias else None
        self.down_bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None
        self.act_fn = ACT2FN[activation]
        self.reset_parameters()

    @property
    def first_weight(self) -> nn.Parameter:
        """The (fused gate and) up projection, (E, F or 2F, D)."""
        return self.get_parameter(self.first_name)

    def reset_parameters(self) -> None:
        """Like nn.Linear, each expert on its own; meta tensors are left alone."""
        for weight, bias in (
            (self.first_weight, self.up_bias),
            (self.down_proj, self.down_bias),
        ):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def forward(self, x_TD: Tensor, ids_TK: Tensor | None = None) -> Tensor:
        """Outputs (T, K, O) of the experts named by ``ids_TK``; None: of all, in order (K = E).

        An id of E means "no expert": that pair costs nothing and its output is 0.
        """
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):  # autocast does not know grouped_mm
            x_TD = x_TD.to(torch.get_autocast_dtype(device))
        if ids_TK is None:
            return self._all(x_TD)
        return self._chosen(x_TD, ids_TK)

    def _hidden(self, up: Tensor) -> Tensor:
        if not self.gated:
            return self.act_fn(up)
        gate, up = up.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def _all(self, x_TD: Tensor) -> Tensor:
        x_1DT = x_TD.T[None]
        up_EFT = self.first_weight.to(x_TD.dtype) @ x_1DT
        if self.up_bias is not None:
            up_EFT = up_EFT + self.up_bias[..., None].to(up_EFT.dtype)
        hidden_ETF = self._hidden(up_EFT.transpose(1, 2))
        out_ETO = hidden_ETF @ self.down_proj.to(x_TD.dtype).transpose(1, 2)
        if self.down_bias is not None:
            out_ETO = out_ETO + self.down_bias[:, None].to(out_ETO.dtype)
        return out_ETO.transpose(0, 1)

    def _chosen(self, x_TD: Tensor, ids_TK: Tensor) -> Tensor:
        num_tokens, top_k = ids_TK.shape
        ids_N = ids_TK.reshape(-1)
        # Sorted by expert, each expert's pairs are one contiguous group; a stable sort keeps the
        # order of tokens, so the result does not depend on the device's sort.
        order_N = ids_N.argsort(stable=True)
        sorted_ids_N = ids_N[order_N]
        count_E = F.one_hot(ids_N, self.num_experts + 1)[:, : self.num_experts].sum(dim=0)
        ends_E = count_E.cumsum(0).to(torch.int32)
        # Filled for the backward: the grouped product leaves those rows' gradient unwritten too.
        x_ND = x_TD[order_N // top_k].masked_fill_((sorted_ids_N == self.num_experts)[:, None], 0.0)

        up_NF = self._grouped_linear(x_ND, self.first_weight, self.up_bias, sorted_ids_N, ends_E)
        out_NO = self._grouped_linear(
            self._hidden(up_NF), self.down_proj, self.down_bias, sorted_ids_N, ends_E
        )

        back_N = torch.empty_like(order_N).scatter_(
            0, order_N, torch.arange(order_N.numel(), device=order_N.device)
        )
        return out_NO[back_N].view(num_tokens, top_k, -1)

    def _grouped_linear(
        self,
        x_ND: Tensor,
        weight_EFD: Tensor,
        bias_EF: Tensor | None,
        ids_N: Tensor,
        ends_E: Tensor,
    ) -> Tensor:
        """``x @ weight[id].T + bias[id]`` of pairs sorted by expert; 0 for pairs without one."""
        weight_EDF = weight_EFD.to(x_ND.dtype).transpose(1, 2)
        out_NF = F.grouped_mm(x_ND, weight_EDF, offs=ends_E)
        if bias_EF is not None:
            out_NF = out_NF + bias_EF.to(out_NF.dtype)[ids_N.clamp(max=self.num_experts - 1)]
        # Rows behind the last group were never written: they hold whatever was in memory.
        return out_NF.masked_fill((ids_N == self.num_experts)[:, None], 0.0)

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
        return f"{shapes}, activation={self.activation}"
