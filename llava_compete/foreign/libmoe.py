"""The layout of CompeteSMoE's and LibMoE's own checkpoints: a Phi-3 with a SigLIP of experts.

Known by its key names alone; no file of theirs has been read by this project. E experts, F hidden
and C input width of an expert.

- ``model.embed_tokens``, ``model.layers``, ``model.norm``, ``lm_head``: transformers' Phi-3, dense.
- ``model.mm_projector.moelayer``: ``experts.{e}.{0,2}`` are linear, GELU, linear; ``gate``.
- ``model.vision_tower.vision_model``: transformers' SigLIP, in each block ``moelayer.experts.{e}``
  of ``fc1``, ``fc2`` and ``moelayer.gate`` in place of ``mlp``. The feature is the input of the
  last block, without a norm, so what that block holds reaches nothing.

Routing at inference is the gate's top K of a softmax, renormalised: routers topk and compete.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Phi3Config, SiglipVisionConfig

from llava_compete.foreign.keys import AnyRule, Drop, Join, Report, Rule, map_keys
from llava_compete.foreign.siglip import siglip_rules, siglip_vision
from llava_compete.model import LlavaCompeteConfig, LlavaCompeteForConditionalGeneration
from llava_compete.moe import MoEConfig

LAYER = -2  # the block whose output is the last one's input
TOWER = "model.vision_tower.vision_model."
PROJECTOR = "model.mm_projector.moelayer."

# By the name in mm_vision_tower: what the weights' shapes do not tell.
HEADS = {"google/siglip-so400m-patch14-224": 16, "google/siglip-base-patch16-224": 12}

# Of Phi3Config and what older versions of it had in place of rope_parameters.
TEXT_KEYS = {*Phi3Config().to_dict(), "rope_scaling", "rope_theta"} - {
    "_name_or_path",
    "architectures",
    "model_type",
    "transformers_version",
}


class Imported(NamedTuple):
    """Our configuration, the tensors under our names, and what became of each key."""

    config: LlavaCompeteConfig
    tensors: dict[str, Tensor]
    report: Report


def is_libmoe(keys: Mapping[str, Any]) -> bool:
    """Does a state of these keys have this layout?"""
    return any(key.startswith(PROJECTOR) for key in keys)


def import_libmoe(
    values: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    top_k: int | None = None,
    num_heads: int | None = None,
    router: str = "compete",
    image_token_id: int,
) -> Imported:
    """A checkpoint's config.json (``values``) and tensors as ours.

    ``top_k`` is needed where config.json has no ``num_selected``, ``num_heads`` of the tower where
    its name in ``mm_vision_tower`` is not in HEADS. Number of experts, scales and the tower's shape
    are read from the weights. ValueError for what is absent and for every key that does not fit.
    """
    tower_name = values.get("mm_vision_tower")
    num_heads = HEADS.get(str(tower_name)) if num_heads is None else num_heads
    if num_heads is None:
        raise ValueError(
            f"mm_vision_tower={tower_name!r} is not one of {sorted(HEADS)}: give num_heads, the "
            f"attention heads of its blocks"
        )
    top_k = values.get("num_selected") if top_k is None else top_k
    if top_k is None:
        raise ValueError(
            "config.json has no num_selected: give top_k, the experts that a token is sent to"
        )
    siglip = _siglip_config(state, num_heads)
    projector_width = _shape(state, f"{PROJECTOR}experts.0.0.weight")[1]
    scales = _scales(projector_width, siglip.hidden_size)
    vision = siglip_vision(str(tower_name), siglip, LAYER, scales=scales)
    experts = {
        part: MoEConfig(num_experts=number, top_k=top_k, router=router).to_dict()
        for part, number in (
            ("projector", _experts(state, re.escape(PROJECTOR))),
            ("vision", _experts(state, rf"{re.escape(TOWER)}encoder\.layers\.0\.moelayer\.")),
        )
    }
    text = {key: value for key, value in values.items() if key in TEXT_KEYS}
    embedding = _shape(state, "model.embed_tokens.weight")
    config = LlavaCompeteConfig(
        text_config=Phi3Config(**{**text, "vocab_size": embedding[0]}),
        vision_config=vision.to_dict(),
        projector="mlp2x_gelu",
        image_token_id=image_token_id,
        moe=experts,
        dtype=state["model.embed_tokens.weight"].dtype,
    )
    with torch.device("meta"):
        model = LlavaCompeteForConditionalGeneration(config)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    tensors, report = map_keys(state, libmoe_rules(siglip), wanted)
    return Imported(config, tensors, report)


def libmoe_rules(siglip: SiglipVisionConfig) -> list[AnyRule]:
    """The keys of this layout to ours."""
    tower = re.escape(TOWER)
    block = rf"{tower}encoder\.layers\.(\d+)\.moelayer\."
    return [
        Drop(r".*\.prob_flips", "the competition schedule of a training that is over"),
        *siglip_rules(tower, siglip, LAYER),
        *_expert_rules(block, "fc1", "fc2", r"vision.trunk.blocks.\1.mlp"),
        *_expert_rules(re.escape(PROJECTOR), "0", "2", "projector"),
        Rule(r"model\.((?:embed_tokens|layers|norm)\..*)", r"language_model.model.\1"),
        Rule(r"lm_head\.weight", "language_model.lm_head.weight"),
    ]


def _expert_rules(below: str, up: str, down: str, to: str) -> list[AnyRule]:
    expert = rf"{below}experts\.(?P<part>\d+)\."
    names = {
        rf"{up}\.weight": "up_proj",
        rf"{up}\.bias": "up_bias",
        rf"{down}\.weight": "down_proj",
        rf"{down}\.bias": "down_bias",
    }
    return [
        *(
            Join(rf"{expert}{theirs}", f"{to}.experts.{ours}", join=torch.stack)
            for theirs, ours in names.items()
        ),
        Rule(rf"{below}gate\.weight", f"{to}.router.gate.weight"),
    ]


def _siglip_config(state: Mapping[str, Tensor], num_heads: int) -> SiglipVisionConfig:
    """The tower's shape, as its weights have it."""
    width, channels, patch, _ = _shape(state, f"{TOWER}embeddings.patch_embedding.weight")
    positions, _ = _shape(state, f"{TOWER}embeddings.position_embedding.weight")
    side = math.isqrt(positions)
    if side**2 != positions:
        raise ValueError(f"{TOWER}embeddings: {positions} positions are not a square of patches")
    if width % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the tower's width, {width}")
    hidden, _ = _shape(state, f"{TOWER}encoder.layers.0.moelayer.experts.0.fc1.weight")
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=_count(state, rf"{re.escape(TOWER)}encoder\.layers\.(\d+)\."),
        num_attention_heads=num_heads,
        num_channels=channels,
        image_size=side * patch,
        patch_size=patch,
    )


def _scales(projector_width: int, tower_width: int) -> tuple[int, ...]:
    """1 and 3 put together on the channels, or 1 alone."""
    known = {tower_width: (1,), 2 * tower_width: (1, 3)}
    if projector_width not in known:
        raise ValueError(
            f"the projector takes {projector_width} features and the tower makes {tower_width}: "
            f"scales are [1] or [1, 3]"
        )
    return known[projector_width]


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"the checkpoint has no {key}, which CompeteSMoE's layout needs")
    return tuple(state[key].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that ``pattern`` finds."""
    regex = re.compile(pattern)
    return 1 + max(int(found[1]) for key in state if (found := regex.match(key)))


def _experts(state: Mapping[str, Tensor], below: str) -> int:
    return _count(state, rf"{below}experts\.(\d+)\.")
