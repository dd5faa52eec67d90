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

# Rows of an expert's group come in multiples of this. Group sizes differ in every call, and for
# a size it has not met oneDNN compiles a kernel, in bfloat16 at several times the product's cost;
# of multiples there are few. Tensor cores want aligned groups too.
GROUP_ROWS = 32


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
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
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

    def forward(
        self, x_TD: Tensor, ids_TK: Tensor | None = None, most_pairs: int | None = None
    ) -> Tensor:
        """Outputs (T, K, O) of the experts named by ``ids_TK``; None: of all, in order (K = E).

        An id of E means "no expert": that pair costs nothing and its output is 0. Where no more
        than ``most_pairs`` of the T*K pairs have an expert, memory is taken for these alone.
        """
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):  # autocast does not know grouped_mm
            x_TD = x_TD.to(torch.get_autocast_dtype(device))
        if ids_TK is None:
            return self._all(x_TD)
        return self._chosen(x_TD, ids_TK, most_pairs)

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

    def _chosen(self, x_TD: Tensor, ids_TK: Tensor, most_pairs: int | None) -> Tensor:
        num_tokens, top_k = ids_TK.shape
        ids_N = ids_TK.reshape(-1)
        rows_N, ends_E = self._rows(ids_N)
        # R rows: the pairs sorted by expert, each expert's group filled up to a multiple of
        # GROUP_ROWS. A row that is no pair reads some token and is read by nobody.
        num_rows = ids_N.numel() + self.num_experts * GROUP_ROWS
        if most_pairs is not None and most_pairs < ids_N.numel():
            # All pairs without an expert share the last row, which is behind the last group.
            num_rows = most_pairs + (self.num_experts + 1) * GROUP_ROWS
            rows_N = rows_N.clamp(max=num_rows - 1)
        token_N = torch.arange(ids_N.numel(), device=ids_N.device) // top_k
        token_R = ids_N.new_zeros(num_rows).scatter_(0, rows_N, token_N)
        ids_R = ids_N.new_full((num_rows,), self.num_experts).scatter_(0, rows_N, ids_N)
        behind_R1 = torch.arange(num_rows, device=ids_N.device)[:, None] >= ends_E[-1]

        x_RD = x_TD[token_R].masked_fill_(behind_R1, 0.0)
        up_RF = self._grouped_linear(
            x_RD, self.first_weight, self.up_bias, ids_R, ends_E, behind_R1
        )
        out_RO = self._grouped_linear(
            self._hidden(up_RF), self.down_proj, self.down_bias, ids_R, ends_E, behind_R1
        )
        return out_RO[rows_N].view(num_tokens, top_k, -1)

    def _rows(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each pair, and where each expert's group of rows ends (E,) int32.

        Pairs keep their order inside a group, so nothing depends on how a device sorts. Pairs
        without an expert come behind the last group. No count passes through the host.
        """
        chosen_NG = F.one_hot(ids_N, self.num_experts + 1)
        before_NG = chosen_NG.cumsum(dim=0) - chosen_NG
        # At least a block for every expert: on some GPUs the weight gradient of an empty group is
        # garbage (pytorch issue 172439).
        count_G = chosen_NG.sum(dim=0).clamp(min=1)
        filled_G = (count_G + GROUP_ROWS - 1) // GROUP_ROWS * GROUP_ROWS
        end_G = filled_G.cumsum(0)
        place_N = before_NG.gather(1, ids_N[:, None])[:, 0]
        return (end_G - filled_G)[ids_N] + place_N, end_G[:-1].to(torch.int32)

    def _grouped_linear(
        self,
        x_RD: Tensor,
        weight_EFD: Tensor,
        bias_EF: Tensor | None,
        ids_R: Tensor,
        ends_E: Tensor,
        behind_R1: Tensor,
    ) -> Tensor:
        """``x @ weight[id].T + bias[id]`` of rows grouped by expert; 0 behind the last group."""
        out_RF = F.grouped_mm(x_RD, weight_EFD.to(x_RD.dtype).transpose(1, 2), offs=ends_E)
        if bias_EF is not None:
            out_RF = out_RF + bias_EF.to(out_RF.dtype)[ids_R.clamp(max=self.num_experts - 1)]
        # Rows behind the last group were never written: they hold whatever was in memory. The
        # same goes for the gradient of x there, hence the masked x.
        return out_RF.masked_fill(behind_R1, 0.0)

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
        return f"{shapes}, activation={self.activation}"
