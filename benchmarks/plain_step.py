"""The training step that is usually written: padding, all logits, a loop over experts.

B sequences of L tokens, D width, V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.looped import LoopedLayer
from llava_compete import LlavaCompeteForConditionalGeneration as Model
from llava_compete.data import IGNORED
from llava_compete.moe import MoELayer
from llava_compete.moe.collect import take_losses


class LoopedBlock(LoopedLayer):
    """LoopedLayer in the place of a decoder layer's: (B, L, D) to the same."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        return super().forward(x_BLD.flatten(0, 1)).view_as(x_BLD)


class PlainModel(nn.Module):
    """The same model on a copy of its weights, with LoopedBlocks in the language model.

    As in LLaVA and in the public code of CompeteSMoE rows are padded to the longest, logits are
    made at every position and turned into float32, and the routers' losses count padding too.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.language_model.set_attn_implementation("sdpa")
        self.weights = model.config.moe_configs["language_model"].loss_weights
        self.blocks: list[LoopedBlock] = []
        for layer in self.model.language_model.model.layers:
            if isinstance(layer.mlp, MoELayer):
                layer.mlp = LoopedBlock(layer.mlp, *as_linear(layer.mlp))
                self.blocks.append(layer.mlp)

    def compete(self, flags: Sequence[bool]) -> None:
        """Which blocks compete."""
        for block, flag in zip(self.blocks, flags, strict=True):
            block.competing = flag

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and the language's share of it."""
        embeddings_BLD = self.model.embed(batch["input_ids"], batch["pixel_values"])
        hidden_BLD = self.model.language_model.get_decoder()(
            inputs_embeds=embeddings_BLD, attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        logits_BLV = self.model.get_output_embeddings()(hidden_BLD).float()
        shifted_BLV = logits_BLV[:, :-1].contiguous()
        language = F.cross_entropy(
            shifted_BLV.view(-1, shifted_BLV.shape[-1]),
            batch["labels"][:, 1:].flatten(),
            ignore_index=IGNORED,
        )
        routers = torch.stack(
            [
                self.weights[name] * value / len(self.blocks)
                for block in self.blocks
                for name, value in block.losses.items()
            ]
        ).sum()
        others = take_losses(self.model.moe_layers(), self.model.config.moe_configs).total
        return language + routers + others, language.detach()


def as_linear(layer: MoELayer) -> tuple[Tensor, Tensor]:
    """A gated layer's weights as LoopedLayer takes them, copied: (E, 2F, D) and (E, D, F)."""
    experts = layer.experts
    weights = {name: weight.detach().clone() for name, weight in experts.named_parameters()}
    first = [weights[name].transpose(1, 2) for name in ("gate_proj", "up_proj")]
    return torch.cat(first, dim=1), weights["down_proj"]
