"""What several prompts begin with, run once for them all.

The questions about one picture share its prompt up to the first word that differs: the template's
opening, the picture's tokens, often the question's first words. Its keys and values are made once
and handed to each of them.

B prompts, G prefixes, P positions of the longest prefix, D width of the language model, L
positions of the longest rest.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

if TYPE_CHECKING:
    from llava_compete.model import LlavaCompeteForConditionalGeneration


KNOWN_LAYERS = {"full_attention", "sliding_attention"}  # of transformers' layer_types


class Prefix(NamedTuple):
    """What the language model keeps of the prompts' first parts, one row a prompt."""

    cache: DynamicCache  # P positions of B rows
    attention_mask: Tensor  # int64 (B, P), prefixes stand on the right

    def before(self, embeddings_BLD: Tensor, attention_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The rests of the prompts in their places behind the prefix, (B, P + L, D) and mask.

        ``generate`` cuts off what the cache holds, so its embeddings may be anything.
        """
        num_positions = self.attention_mask.shape[1]
        return (
            F.pad(embeddings_BLD, (0, 0, num_positions, 0)),
            torch.cat([self.attention_mask, attention_mask_BL], dim=1),
        )


class Split(NamedTuple):
    """Prompts cut in two: ``prefixes[owners[b]]`` and ``rests[b]`` are prompt b."""

    prefixes: list[Tensor]  # int64 ids, all pictures' placeholders in them
    rests: list[Tensor]  # at least one id each
    owners: list[int]


def can_share(model: "LlavaCompeteForConditionalGeneration", positions: int) -> bool:
    """Whether each layer of the language model sees all of so many positions.

    Padding stands between a prefix and a rest that is shorter than others, and a window would
    count it.
    """
    config = model.config.text_config
    if set(getattr(config, "layer_types", None) or ["full_attention"]) - KNOWN_LAYERS:
        return False
    window = getattr(config, "sliding_window", None)
    return window is None or positions <= window


def split(
    prompts: Sequence[Tensor], groups: Sequence[Hashable], image_token_id: int
) -> Split | None:
    """Cut prompts where those of their group part; None where that saves nothing.

    Prompts int64 (length,) of the same group show the same pictures.
    """
    place: dict[Hashable, int] = {}
    owners = [place.setdefault(group, len(place)) for group in groups]
    if len(place) == len(prompts):
        return None
    rows: list[list[Tensor]] = [[] for _ in place]
    for prompt, owner in zip(prompts, owners, strict=True):
        rows[owner].append(prompt)
    shared = min(_common(same) for same in rows if len(same) > 1)
    if shared == 0:
        return None
    cuts = []
    for first, *others in rows:
        if others:
            cuts.append(_common([first, *others]))
            continue
        # One alone has nothing to share; it is cut where others are, behind its pictures.
        placeholders = (first == image_token_id).nonzero()
        behind = int(placeholders.max()) + 1 if len(placeholders) else 1
        cuts.append(max(min(shared, len(first) - 1), behind))
    return Split(
        prefixes=[same[0][:cut] for same, cut in zip(rows, cuts, strict=True)],
        rests=[prompt[cuts[owner] :] for prompt, owner in zip(prompts, owners, strict=True)],
        owners=owners,
    )


@torch.no_grad()
def run_prefixes(
    model: "LlavaCompeteForConditionalGeneration",
    parts: Split,
    image_features: Tensor | None,
    pad_token_id: int,
) -> Prefix:
    """Run each prefix once; ``image_features`` (N, P, V) of their pictures, in order.

    The model's MoE layers choose for a prefix's tokens once, and padding is masked.
    """
    device = model.device
    ids_GP, mask_GP = padded_left(parts.prefixes, pad_token_id)
    ids_GP, mask_GP = ids_GP.to(device), mask_GP.to(device)
    embeddings_GPD = model.embed(ids_GP, None, image_features)
    for layer in model.moe_layers().get("language_model", ()):
        layer.mask_T = mask_GP.reshape(-1).bool()
        layer.sequences = None
    cache = DynamicCache(config=model.config.text_config)
    model.language_model.get_decoder()(
        inputs_embeds=embeddings_GPD,
        attention_mask=mask_GP,
        position_ids=(mask_GP.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    owner_B = torch.tensor(parts.owners, device=device)
    cache.batch_select_indices(owner_B)
    return Prefix(cache, mask_GP[owner_B])


def padded_left(rows: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids beside each other, padded on the left: ids and mask, int64 (B, L)."""
    masks = [torch.ones_like(row) for row in rows]
    return (
        pad_sequence(list(rows), batch_first=True, padding_value=pad_token_id, padding_side="left"),
        pad_sequence(masks, batch_first=True, padding_side="left"),
    )


def _common(prompts: Sequence[Tensor]) -> int:
    """Ids at the beginning that all share, and that leave each at least one."""
    length = min(map(len, prompts)) - 1
    same_L = torch.stack([row[:length] == prompts[0][:length] for row in prompts]).all(dim=0)
    return length if bool(same_L.all()) else int(same_L.int().argmin())
