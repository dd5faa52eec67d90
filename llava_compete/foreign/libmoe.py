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

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import Phi3Config, SiglipVisionConfig

from llava_compete.foreign import towers
from llava_compete.foreign.imported import Imported, import_state
from llava_compete.foreign.keys import AnyRule, Drop, Join, Rule
from llava_compete.foreign.siglip import siglip_rules, siglip_vision
from llava_compete.model import LlavaCompeteConfig
from llava_compete.moe import MoEConfig
from llava_compete.vision import VisionConfig
from llava_compete.weight_files import LAYOUTS, read_folder, read_index

LAYER = -2  # the block whose output is the last one's input
TOWER = "model.vision_tower.vision_model."
PROJECTOR = "model.mm_projector.moelayer."

# Of Phi3Config, and what older versions of it had in place of rope_parameters.
TEXT_KEYS = {*Phi3Config().to_dict(), "rope_scaling", "rope_theta"} - {
    "_name_or_path",
    "architectures",
    "dtype",
    "model_type",
    "transformers_version",
}


def is_libmoe(folder: Path) -> bool:
    """Do the weights of ``folder`` have this layout?"""
    indices = [folder / name for name in LAYOUTS if name.endswith(".index.json")]
    found = next((index for index in indices if index.is_file()), None)
    names = read_folder(folder) if found is None else read_index(found)
    return any(name.startswith(PROJECTOR) for name in names)


def import_libmoe(
    folder: Path,
    *,
    top_k: int | None = None,
    router: str = "compete",
    vision_weights: str | None = None,
) -> Imported:
    """The checkpoint of ``folder``.

    ``top_k`` is given where config.json has no ``num_selected``; ``vision_weights``, a folder,
    where the shape of ``mm_vision_tower`` is not known by its name (only its config.json is read).
    The numbers of experts and the scales are those of the weights. ValueError for what is absent
    and for every key that does not fit.
    """
    values = json.loads((folder / "config.json").read_text())
    top_k = values.get("num_selected") if top_k is None else top_k
    if top_k is None:
        raise ValueError(
            f"{folder}: config.json has no num_selected: give --top_k, the experts of a token"
        )
    name = str(values.get("mm_vision_tower"))
    tower = towers.read_config(name, vision_weights)
    if not isinstance(tower, SiglipVisionConfig):
        raise ValueError(f"{folder}: image tower {name!r} is not a SigLIP")
    state = read_folder(folder)
    statistics = towers.read_pixel_statistics(folder, tower.image_size)
    given = {} if statistics is None else statistics._asdict()
    vision = siglip_vision(name, tower, LAYER, scales=_scales(state, tower.hidden_size), **given)
    text = Phi3Config(**{key: values[key] for key in TEXT_KEYS & set(values)})
    config = libmoe_config(state, text, vision, top_k=top_k, router=router)
    return import_state(config, state, libmoe_rules(tower), source=str(folder))


def libmoe_config(
    state: Mapping[str, Tensor], text: Phi3Config, vision: VisionConfig, *, top_k: int, router: str
) -> LlavaCompeteConfig:
    """Our configuration, with as many experts as the weights have."""
    experts = {
        "projector": _num_experts(state, PROJECTOR),
        "vision": _num_experts(state, f"{TOWER}encoder.layers.0.moelayer."),
    }
    return LlavaCompeteConfig(
        text_config=text,
        vision_config=vision.to_dict(),
        projector="mlp2x_gelu",
        moe={
            part: MoEConfig(num_experts=number, top_k=top_k, router=router).to_dict()
            for part, number in experts.items()
        },
    )


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
    joins: dict[str, tuple[str, Callable[[list[Tensor]], Tensor]]] = {
        rf"{up}\.weight": ("up_proj", lambda weights: torch.stack([w.T for w in weights])),
        rf"{up}\.bias": ("up_bias", torch.stack),
        rf"{down}\.weight": ("down_proj", torch.stack),
        rf"{down}\.bias": ("down_bias", torch.stack),
    }
    return [
        *(
            Join(rf"{expert}{theirs}", f"{to}.experts.{ours}", join=join)
            for theirs, (ours, join) in joins.items()
        ),
        Rule(rf"{below}gate\.weight", f"{to}.router.gate.weight"),
    ]


def _scales(state: Mapping[str, Tensor], tower_width: int) -> tuple[int, ...]:
    """1 and 3 put together on the channels, or 1 alone."""
    first = f"{PROJECTOR}experts.0.0.weight"
    if first not in state:
        raise ValueError(f"the checkpoint has no {first}, which this layout needs")
    width = state[first].shape[1]
    known = {tower_width: (1,), 2 * tower_width: (1, 3)}
    if width not in known:
        raise ValueError(
            f"the projector takes {width} features and the tower makes {tower_width} at a scale: "
            f"scales are [1] or [1, 3]"
        )
    return known[width]


def _num_experts(state: Mapping[str, Tensor], below: str) -> int:
    """One more than the largest number of an expert ``below``."""
    expert = re.compile(rf"{re.escape(below)}experts\.(\d+)\.")
    numbers = [int(found[1]) for key in state if (found := expert.match(key))]
    if not numbers:
        raise ValueError(f"the checkpoint has no {below}experts, which this layout needs")
    return 1 + max(numbers)
