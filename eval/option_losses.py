"""Losses of several answers to one question, whose prompt is run once for them all.

B answers, L positions of the longest rest, P of the prompt before it, A answer tokens of all, D
width of the language model, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from llava_compete.data import IGNORED
from llava_compete.data.encode import Tokens
from llava_compete.prefix import Prefix, Split, run_prefixes


def cut(rows: Sequence[Tokens]) -> int:
    """Ids that all rows begin with and that stand before the one that tells the first answer's."""
    first = min(int((row.labels != IGNORED).int().argmax()) for row in rows) - 1
    same_L = torch.stack([row.input_ids[:first] == rows[0].input_ids[:first] for row in rows])
    return first if bool(same_L.all()) else int(same_L.all(dim=0).int().argmin())


@torch.no_grad()
def answer_token_losses(
    model: Any, rows: Sequence[Tokens], image_features: Tensor | None, pad_token_id: int
) -> Tensor:
    """Of the rows' labelled tokens, one after another: float32 (A,), nats.

    The rows show the same pictures, whose ``image_features`` are (N, P, V); all of their
    placeholders stand in what the rows have in common.
    """
    common = cut(rows)
    rests = [row.input_ids[common:] for row in rows]
    parts = Split([rows[0].input_ids[:common]], rests, [0] * len(rows))
    prefix = run_prefixes(model, parts, image_features, pad_token_id)
    hidden_BLD = _behind(model, prefix, rests, pad_token_id)
    labels_BL = pad_sequence(
        [row.labels[common:] for row in rows], batch_first=True, padding_value=IGNORED
    ).to(model.device)
    answered_BL = labels_BL[:, 1:] != IGNORED
    logits_AV = model.get_output_embeddings()(hidden_BLD[:, :-1][answered_BL]).float()
    return F.cross_entropy(logits_AV, labels_BL[:, 1:][answered_BL], reduction="none")


def _behind(model: Any, prefix: Prefix, rests: Sequence[Tensor], pad_token_id: int) -> Tensor:
    """The last hidden states (B, L, D) of the rests, padded on the right."""
    ids_BL = pad_sequence(list(rests), batch_first=True, padding_value=pad_token_id)
    mask_BL = pad_sequence([torch.ones_like(rest) for rest in rests], batch_first=True)
    ids_BL, mask_BL = ids_BL.to(model.device), mask_BL.to(model.device)
    embeddings_BLD = model.embed(ids_BL, None)
    for layer in model.moe_layers().get("language_model", ()):
        layer.mask_T = mask_BL.reshape(-1).bool()
        layer.sequences = None
    common = prefix.attention_mask.shape[1]
    positions_BL = common + torch.arange(ids_BL.shape[1], device=model.device).expand_as(ids_BL)
    hidden_BLD: Tensor = model.language_model.get_decoder()(
        inputs_embeds=embeddings_BLD,
        attention_mask=torch.cat([prefix.attention_mask, mask_BL], dim=1),
        position_ids=positions_BL,
        past_key_values=prefix.cache,
        use_cache=True,
    ).last_hidden_state
    return hidden_BLD
