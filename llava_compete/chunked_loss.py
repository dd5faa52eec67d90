"""Cross-entropy of a language model's head, of which no more than a chunk of logits exists at once.

A answer tokens, C of them in a chunk, D width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

# Of a chunk's float32 logits; those of the head's dtype, and their gradient, stand beside them. In
# smaller chunks the sum of a trained weight's gradients takes longer than their products.
CHUNK_BYTES = 256 * 2**20
# What some families do to the logits behind the head, and the value with which it does nothing.
BEHIND_THE_HEAD = {
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}


class AnswerLosses(NamedTuple):
    """Cross-entropies in float32 (float64 of such a head)."""

    total: Tensor  # their sum, a scalar with gradient
    each_A: Tensor  # without gradient


class LossHead(nn.Linear):
    """A head, hidden (..., D) -> logits (..., V), that with labels gives losses instead.

    The losses are made inside the module's call, so that what hooks do around it (ZeRO-3 gathers
    the weight) happens once for all chunks.
    """

    def forward(self, input: Tensor, labels_A: Tensor | None = None) -> Any:
        """Logits, or with ``labels_A`` int64, of ``input`` (A, D), the AnswerLosses.

        Of float16 and bfloat16 logits the losses are made in float32, as cross_entropy would make
        them of ``logits.float()``.
        """
        if labels_A is None:
            return super().forward(input)
        device, dtype = input.device.type, self.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        graded = torch.is_grad_enabled()  # which is off inside of a Function
        return AnswerLosses(*_Losses.apply(input, self.weight, self.bias, labels_A, dtype, graded))


def give_losses(language_model: PreTrainedModel) -> None:
    """Make the head a LossHead in place: weight, ties, hooks and names stay as they are.

    ValueError for a head that is no nn.Linear, or logits that are more than its output.
    """
    head = language_model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError(
            f"the head of {type(language_model).__name__} is a {type(head).__name__}, the loss is "
            f"made of an nn.Linear's weight: take a language model with such a head"
        )
    _check_logits(language_model.config)
    head.__class__ = LossHead


def _check_logits(config: PreTrainedConfig) -> None:
    values = config.to_dict()
    for name, neutral in BEHIND_THE_HEAD.items():
        if (value := values.get(name, neutral)) not in (neutral, None):
            raise ValueError(
                f"{name}={value} of a {config.model_type} changes the logits behind the head, "
                f"which the loss does not know: take a language model without it"
            )


class _Losses(torch.autograd.Function):
    """The gradients are made in the forward, of logits that are there, for a gradient of 1.

    The backward only scales them. Nothing of size A * V outlives its chunk, at no second product
    with the head; a frozen head costs no product for its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_AD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_A: Tensor,
        dtype: torch.dtype,
        graded: bool,
    ) -> tuple[Tensor, Tensor]:
        chunk = max(1, CHUNK_BYTES // (4 * len(weight_VD)))
        wanted = tuple(graded and needed for needed in ctx.needs_input_grad[:3])
        exact = torch.promote_types(dtype, torch.float32)
        head = (weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype))
        losses_A = hidden_AD.new_empty(len(hidden_AD), dtype=exact)
        gradients = _Gradients(hidden_AD, weight_VD, wanted, exact)
        for begin in range(0, len(hidden_AD), chunk):
            rows = slice(begin, begin + chunk)
            hidden_CD, labels_C1 = hidden_AD[rows].to(dtype), labels_A[rows, None]
            logits_CV = F.linear(hidden_CD, *head)
            log_probs_CV = torch.log_softmax(logits_CV, dim=-1, dtype=exact)
            losses_A[rows] = -log_probs_CV.gather(1, labels_C1)[:, 0]
            del logits_CV
            if any(wanted):
                error_CV = log_probs_CV.exp_()
                ones_C1 = torch.ones_like(labels_C1, dtype=exact)
                error_CV.scatter_add_(1, labels_C1, -ones_C1)
                gradients.add(rows, error_CV.to(dtype), hidden_CD, head[0])
        ctx.save_for_backward(*gradients.whole(bias_V))
        ctx.mark_non_differentiable(losses_A)
        return losses_A.sum(), losses_A

    @staticmethod
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else gradient * received[0] for gradient in ctx.saved_tensors
        ]
        return *scaled, None, None, None


class _Gradients:
    """Of hidden, weight and bias, where they are wanted, chunk by chunk."""

    def __init__(
        self,
        hidden_AD: Tensor,
        weight_VD: Tensor,
        wanted: tuple[bool, ...],
        exact: torch.dtype,
    ) -> None:
        self._weight_VD, self._exact = weight_VD, exact
        self._hidden_wanted, self._weight_wanted, self._bias_wanted = wanted
        self._hidden_AD = torch.empty_like(hidden_AD) if self._hidden_wanted else None
        self._sums: dict[str, Tensor] = {}

    def add(self, rows: slice, error_CV: Tensor, hidden_CD: Tensor, head_VD: Tensor) -> None:
        """A chunk's, from the gradient of its logits."""
        if self._hidden_AD is not None:
            self._hidden_AD[rows] = error_CV @ head_VD
        if self._weight_wanted:
            self._sum("weight", error_CV.T @ hidden_CD)
        if self._bias_wanted:
            self._sum("bias", error_CV.sum(dim=0, dtype=self._exact))

    def _sum(self, name: str, part: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = part
        else:  # from the second chunk on in float32: in bfloat16 each would be rounded to the sum
            self._sums[name] = self._sums[name].to(self._exact).add_(part)

    def whole(self, bias_V: Tensor | None) -> tuple[Tensor | None, ...]:
        """All three in the dtypes of what they are of."""
        weight_VD = bias = None
        if self._weight_wanted:
            weight_VD = self._of("weight", self._weight_VD)
        if self._bias_wanted:
            assert bias_V is not None
            bias = self._of("bias", bias_V)
        return self._hidden_AD, weight_VD, bias

    def _of(self, name: str, parameter: Tensor) -> Tensor:
        if name not in self._sums:  # no answer, no chunk
            return torch.zeros_like(parameter)
        return self._sums[name].to(parameter.dtype)
