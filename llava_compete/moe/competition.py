"""All experts on all tokens, and what the winners said, with a backward of its own.

T tokens, E experts, K winners per token, D input, F hidden, O output width. CompeteSMoE,
arXiv:2505.13380.

Autograd would keep float32 outputs, activations and winners of every expert. Kept here are the
products of the gate, up and down projections, or, where these take more than a budget of memory,
nothing but the winners' outputs: then the experts run again in the backward, a span of tokens at a
time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llava_compete.moe.elementwise import Elementwise, HiddenGradient, at_least_float32
from llava_compete.moe.grouping import group_pairs, padded
from llava_compete.moe.mixture import Weights
from llava_compete.moe.products import parts


class Competition(NamedTuple):
    """What came of it, winners in the order of their strength."""

    affinity_TE: Tensor  # float32: each expert's response, its mean softplus
    ids_TK: Tensor  # int64
    outputs_TKO: Tensor  # of the winners


def compete(
    x_TD: Tensor,
    top_k: int,
    weights: Weights,
    elementwise: Elementwise,
    budget: int | None = None,
    *,
    losers_gradient: bool = True,
) -> Competition:
    """The competition of all experts for each token.

    ``budget``: bytes that it may keep for its backward, or take for a while if it keeps nothing;
    None: no bound. Without ``losers_gradient`` an expert learns nothing from tokens that it lost:
    the affinities that it had there are constants. Then it keeps nothing, either.
    """
    num_experts, out_features, hidden_features = weights.down_EOF.shape
    inner = hidden_features * (1 if weights.gate_EDF is None else 2)
    kept = num_experts * (inner + out_features)  # numbers of a token
    taken = num_experts * out_features + 6 * hidden_features
    spans, keeps = 1, losers_gradient
    if budget is not None:
        room = max(budget // weights.down_EOF.element_size(), 1)
        keeps = keeps and len(x_TD) * kept <= room
        spans = 1 if keeps else -(-len(x_TD) * taken // room)
    span = max(-(-len(x_TD) // spans), 1)
    function = _Competition if losers_gradient else _WinnersAlone
    return Competition(*function.apply(elementwise, top_k, span, keeps, x_TD, *weights))


class _Competition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        elementwise: Elementwise,
        top_k: int,
        span: int,
        keeps: bool,
        x_TD: Tensor,
        *stacked: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = Weights(*stacked)
        num_experts, out_features, _ = weights.down_EOF.shape
        affinity_TE = x_TD.new_empty(len(x_TD), num_experts, dtype=at_least_float32(x_TD))
        ids_TK = torch.empty(len(x_TD), top_k, dtype=torch.int64, device=x_TD.device)
        outputs_TKO = x_TD.new_empty(len(x_TD), top_k, out_features)
        kept: list[Tensor | None] = []
        for tokens in _spans(len(x_TD), span):
            x_SD = x_TD[tokens]
            out_ESO = x_TD.new_empty(num_experts, len(x_SD), out_features)
            for expert in range(num_experts):
                gate_SF, up_SF = _project(x_SD, weights, expert)
                _answer(gate_SF, up_SF, weights, expert, elementwise, out=out_ESO[expert])
                affinity_TE[tokens, expert] = elementwise.affinity(out_ESO[expert])
                if keeps:
                    kept += [gate_SF, up_SF, out_ESO[expert]]
            ids_SK = affinity_TE[tokens].topk(top_k, dim=-1).indices
            ids_TK[tokens] = ids_SK
            place_SK = ids_SK * len(x_SD) + torch.arange(len(x_SD), device=x_TD.device)[:, None]
            outputs_TKO[tokens] = F.embedding(place_SK, out_ESO.flatten(0, 1))
        ctx.elementwise, ctx.span = elementwise, span
        ctx.save_for_backward(x_TD, ids_TK, outputs_TKO, *stacked, *kept)
        ctx.mark_non_differentiable(ids_TK)
        return affinity_TE, ids_TK, outputs_TKO

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, affinity_grad_TE: Tensor, _: None, outputs_grad_TKO: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TD, ids_TK, _, *saved = ctx.saved_tensors
        stacked, kept = saved[: len(Weights._fields)], saved[len(Weights._fields) :]
        weights = Weights(*stacked)
        wanted = zip(Weights._fields, stacked, ctx.needs_input_grad[5:], strict=True)
        grads = {name: torch.empty_like(weight) for name, weight, needed in wanted if needed}
        x_grad_TD = torch.zeros_like(x_TD)
        num_experts = affinity_grad_TE.shape[1]
        won_NO = padded(outputs_grad_TKO.flatten(0, 1))  # the last row: did not win
        place_TE = ids_TK.new_full(affinity_grad_TE.shape, ids_TK.numel())
        place_TE.scatter_(1, ids_TK, _numbers(ids_TK))
        for tokens in _spans(len(x_TD), ctx.span):
            turned_DS = ctx.elementwise.turned(x_TD[tokens])
            for expert in range(num_experts):
                if kept:
                    gate_SF, up_SF, out_SO = kept[3 * expert : 3 * expert + 3]
                else:
                    gate_SF, up_SF = _project(x_TD[tokens], weights, expert)
                    out_SO = _answer(gate_SF, up_SF, weights, expert, ctx.elementwise)
                out_grad_SO = ctx.elementwise.affinity_backward(
                    out_SO,
                    affinity_grad_TE[tokens, expert],
                    won_NO.index_select(0, place_TE[tokens, expert]),
                )
                found = ctx.elementwise.hidden_backward(
                    gate_SF, up_SF, out_grad_SO @ weights.down_EOF[expert]
                )
                turned_OS = ctx.elementwise.turned(out_grad_SO)
                _add(grads, expert, turned_DS, turned_OS, found, first=tokens.start == 0)
                x_grad_TD[tokens].addmm_(found.up_RF, weights.up_EDF[expert].T)
                if weights.gate_EDF is not None:
                    x_grad_TD[tokens].addmm_(found.gate_RF, weights.gate_EDF[expert].T)
        return None, None, None, None, x_grad_TD, *(grads.get(name) for name in Weights._fields)


class _WinnersAlone(_Competition):
    """The backward of the pairs that won; their hidden units are made again."""

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, affinity_grad_TE: Tensor, _: None, outputs_grad_TKO: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TD, ids_TK, outputs_TKO, *stacked = ctx.saved_tensors
        weights = Weights(*stacked)
        wanted = zip(Weights._fields, stacked, ctx.needs_input_grad[5:], strict=True)
        grads = {name: torch.empty_like(weight) for name, weight, needed in wanted if needed}
        groups = group_pairs(ids_TK, affinity_grad_TE.shape[1], x_TD.dtype)
        pair_R = ids_TK.new_full(groups.token_R.shape, ids_TK.numel())
        pair_R[groups.row_TK] = _numbers(ids_TK)
        tokens, outputs_NO = padded(x_TD), padded(outputs_TKO.flatten(0, 1))
        won_NO = padded(outputs_grad_TKO.flatten(0, 1))
        affinity_grad_N = F.pad(affinity_grad_TE.gather(1, ids_TK).flatten(), (0, 1))
        x_grad_RD = x_TD.new_empty(len(pair_R), x_TD.shape[1])
        for part in parts(groups.ends_E, ctx.elementwise, empty=True):
            x_RD, pairs = groups.read(tokens, part.rows), pair_R[part.rows]
            up_RF = part.linear(x_RD, weights.up_EDF, weights.up_bias_EF)
            gate_RF = None
            if weights.gate_EDF is not None:
                gate_RF = part.linear(x_RD, weights.gate_EDF, weights.gate_bias_EF)
            out_grad_RO = ctx.elementwise.affinity_backward(
                outputs_NO.index_select(0, pairs),
                affinity_grad_N[pairs],
                won_NO.index_select(0, pairs),
            )
            found = ctx.elementwise.hidden_backward(
                gate_RF, up_RF, part.linear(out_grad_RO, weights.down_EOF)
            )
            part.outer(grads, out_grad_RO, {"down_EOF": found.hidden_RF})
            part.outer(grads, x_RD, {"up_EDF": found.up_RF, "gate_EDF": found.gate_RF})
            biases = {"up_bias_EF": found.up_RF, "gate_bias_EF": found.gate_RF}
            part.sums(grads, x_RD.new_ones(len(x_RD), 1), {**biases, "down_bias_EO": out_grad_RO})
            x_grad = part.linear(found.up_RF, weights.up_EDF.mT, out=x_grad_RD[part.rows])
            if weights.gate_EDF is not None:
                part.add_linear(found.gate_RF, weights.gate_EDF.mT, x_grad)
        of_stacked = (grads.get(name) for name in Weights._fields)
        return None, None, None, None, groups.combine(x_grad_RD), *of_stacked


def _numbers(ids_TK: Tensor) -> Tensor:
    """The number of each pair."""
    return torch.arange(ids_TK.numel(), device=ids_TK.device).view_as(ids_TK)


def _spans(num_tokens: int, span: int) -> Iterator[slice]:
    for begin in range(0, max(num_tokens, 1), span):
        yield slice(begin, min(begin + span, num_tokens))


def _project(x_SD: Tensor, weights: Weights, expert: int) -> tuple[Tensor | None, Tensor]:
    """One expert's gate and up projection of a span of tokens."""
    up_SF = x_SD @ weights.up_EDF[expert]
    if weights.up_bias_EF is not None:
        up_SF += weights.up_bias_EF[expert]
    if weights.gate_EDF is None:
        return None, up_SF
    gate_SF = x_SD @ weights.gate_EDF[expert]
    if weights.gate_bias_EF is not None:
        gate_SF += weights.gate_bias_EF[expert]
    return gate_SF, up_SF


def _answer(
    gate_SF: Tensor | None,
    up_SF: Tensor,
    weights: Weights,
    expert: int,
    elementwise: Elementwise,
    out: Tensor | None = None,
) -> Tensor:
    """One expert's output."""
    hidden_SF = elementwise.hidden(gate_SF, up_SF)
    out_SO = torch.mm(hidden_SF, weights.down_EOF[expert].T, out=out)
    if weights.down_bias_EO is not None:
        out_SO += weights.down_bias_EO[expert]
    return out_SO


def _add(
    grads: dict[str, Tensor],
    expert: int,
    turned_DS: Tensor,
    turned_OS: Tensor,
    found: HiddenGradient,
    *,
    first: bool,
) -> None:
    """Write one expert's gradients of the first span of tokens, add those of another one.

    ``turned``: the tokens and the gradient of the expert's outputs, transposed.
    """
    products: dict[str, Any] = {  # None of a gate that is not there
        "up_EDF": (turned_DS, found.up_RF),
        "gate_EDF": (turned_DS, found.gate_RF),
        "down_EOF": (turned_OS, found.hidden_RF),
    }
    sums: dict[str, Any] = {
        "up_bias_EF": found.up_RF,
        "gate_bias_EF": found.gate_RF,
        "down_bias_EO": turned_OS.T,
    }
    for name, grad in grads.items():
        if first and name in products:
            torch.mm(*products[name], out=grad[expert])
        elif first:
            torch.sum(sums[name], dim=0, out=grad[expert])
        elif name in products:
            grad[expert].addmm_(*products[name])
        else:
            grad[expert] += sums[name].sum(dim=0)
