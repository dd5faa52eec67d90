"""What words and what image patches each expert takes most, at a size that rows do not grow.

T tokens of a layer, E experts, W vocabulary, N pictures of a batch, P patches a picture.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from llava_compete.moe.analysis import chosen_experts
from llava_compete.routing.watch import IMAGE, UNCOUNTED, LayerKey, Seen


class Words:
    """For ``watching``: how often each expert takes each token of the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.counts: dict[LayerKey, Tensor] = {}  # int64 (E + 1, W); the last row: all tokens

    def __call__(self, seen: Seen) -> None:
        if seen.ids_T is None:
            return
        num_experts = seen.layer.experts.num_experts
        if seen.key not in self.counts:
            shape = (num_experts + 1, self.vocab_size)
            self.counts[seen.key] = torch.zeros(shape, dtype=torch.int64, device=seen.ids_T.device)
        said_T = (seen.kind_T != IMAGE) & (seen.kind_T != UNCOUNTED)
        chosen_TE = chosen_experts(seen.routing.ids_TK, num_experts)[said_T]
        rows_TG = torch.cat([chosen_TE, chosen_TE.new_ones(len(chosen_TE), 1)], dim=1)
        self.counts[seen.key].index_add_(1, seen.ids_T[said_T], rows_TG.T.long())

    def most(
        self, key: LayerKey, tokenizer: PreTrainedTokenizerBase, count: int
    ) -> list[list[dict[str, Any]]]:
        """For each expert the words furthest above what its load alone would give it.

        Special tokens (the template's markers) are no words.

        Their order is that of (n_e - n p_e) / sqrt(n p_e (1 - p_e)): n occurrences of the word, n_e
        of them with the expert, p_e the expert's share of all tokens that are no patches.
        ``share`` is n_e / n, ``lift`` that over p_e.
        """
        counts_GW = self.counts[key].double()
        chosen_EW, all_W = counts_GW[:-1], counts_GW[-1]
        load_E1 = chosen_EW.sum(dim=1, keepdim=True) / all_W.sum()
        spread_EW = (all_W * load_E1 * (1 - load_E1)).sqrt()
        above_EW = torch.where(spread_EW > 0, (chosen_EW - all_W * load_E1) / spread_EW, 0.0)
        added = tokenizer.added_tokens_decoder.items()
        above_EW[:, [word for word, token in added if token.special]] = 0.0
        best = above_EW.topk(min(count, self.vocab_size), dim=1)
        return [
            [
                {
                    "word": tokenizer.decode([word]),
                    "count": int(all_W[word]),
                    "share": (chosen_EW[expert, word] / all_W[word]).item(),
                    "lift": (chosen_EW[expert, word] / all_W[word] / load_E1[expert, 0]).item(),
                }
                for word, score in zip(words, scores, strict=True)
                if score > 0
            ]
            for expert, (words, scores) in enumerate(
                zip(best.indices.tolist(), best.values.tolist(), strict=True)
            )
        ]


class Patch(NamedTuple):
    """An image patch that an expert takes, and by how much its score leads the best other's."""

    lead: float
    file: str
    patch: int


class Patches:
    """For ``watching``: the patches on which an expert leads most, one of a picture.

    ``files`` names the batch's pictures in order; set it before each forward. Of ``map_files``
    every layer's first choices are kept.
    """

    def __init__(self, num_patches: int, count: int, map_files: Collection[str]) -> None:
        self.num_patches = num_patches
        self.count = count
        self.map_files = map_files
        self.files: Sequence[str] = ()
        self.best: dict[LayerKey, list[dict[str, Patch]]] = {}  # by expert, then by file
        # First choice (P,) by file and layer; -1: no expert.
        self.maps: dict[str, dict[LayerKey, list[int]]] = {}

    def __call__(self, seen: Seen) -> None:
        if seen.patch_T is None or not self.files:
            return
        rows_T = (seen.kind_T == IMAGE) & (seen.patch_T >= 0)
        if not rows_T.any():
            return
        lead_TE = _leads(seen)[rows_T]
        # (N, P): the rows are all patches of all pictures, in whatever order the layer has them.
        order_T = seen.patch_T[rows_T].argsort()
        lead_NPE = lead_TE[order_T].view(len(self.files), self.num_patches, -1)
        value_NE, patch_NE = lead_NPE.max(dim=1)
        kept = self.best.setdefault(seen.key, [{} for _ in range(lead_NPE.shape[-1])])
        for file, values, patches in zip(
            self.files, value_NE.tolist(), patch_NE.tolist(), strict=True
        ):
            for best, value, patch in zip(kept, values, patches, strict=True):
                if math.isfinite(value):
                    self._keep(best, Patch(value, file, patch))
        self._map(seen.key, lead_NPE)

    def _keep(self, best: dict[str, Patch], found: Patch) -> None:
        if found.file not in best or best[found.file] < found:
            best[found.file] = found
        if len(best) > self.count:
            del best[min(best, key=lambda file: best[file])]

    def _map(self, key: LayerKey, lead_NPE: Tensor) -> None:
        best_NP, first_NP = lead_NPE.max(dim=-1)
        first_NP = first_NP.masked_fill(best_NP == -math.inf, -1)
        for file, first_P in zip(self.files, first_NP.tolist(), strict=True):
            if file in self.map_files:
                self.maps.setdefault(file, {}).setdefault(key, first_P)

    def most(self, key: LayerKey) -> list[list[Patch]]:
        """For each expert its patches, the largest lead first."""
        return [sorted(best.values(), reverse=True) for best in self.best.get(key, [])]


def _leads(seen: Seen) -> Tensor:
    """Score of each expert less the best other's, (T, E); -inf where it does not take the token.

    An expert that is always on (score inf) takes no token more than another: it leads nowhere.
    """
    scores_TE = seen.routing.scores_TE
    scores_TE = scores_TE.masked_fill(scores_TE == math.inf, -math.inf)
    # Best and second best; alone an expert has no other to lead.
    top_T2 = F.pad(scores_TE, (0, 1), value=-math.inf).topk(2, dim=-1).values
    lead_TE = scores_TE - torch.where(scores_TE == top_T2[:, :1], top_T2[:, 1:], top_T2[:, :1])
    chosen_TE = chosen_experts(seen.routing.ids_TK, scores_TE.shape[-1])
    return lead_TE.masked_fill(~chosen_TE | ~lead_TE.isfinite(), -math.inf)
