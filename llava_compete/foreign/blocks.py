"""What CLIP's and SigLIP's towers have in common in transformers: the names of their blocks.

Of each tower ours are another library's, and are said once for both directions.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from transformers import CLIPVisionConfig, SiglipVisionConfig

from llava_compete.foreign.keys import AnyRule, Drop, Join, Rule, Split, thirds

T = TypeVar("T")


class BlockNames(NamedTuple):
    """Ours, of a tower; behind a map's name stands weight or bias."""

    blocks: str  # their number follows
    norm: str  # 1 or 2 follows
    qkv: str  # one map
    out: str
    up: str
    down: str


def import_block_rules(prefix: str, ours: BlockNames, depth: int, last: int) -> list[AnyRule]:
    """Weights of ``depth`` blocks below ``prefix``, a pattern, to ours up to block ``last``."""
    block, to = rf"{prefix}encoder\.layers\.(\d+)\.", rf"{ours.blocks}.\1"
    behind = "|".join(str(index) for index in range(last + 1, depth))
    why = f"a block behind the one whose output is the feature ({last})"
    return [
        *([Drop(rf"{prefix}encoder\.layers\.(?:{behind})\..*", why)] if behind else []),
        Rule(rf"{block}layer_norm([12])\.(weight|bias)", rf"{to}.{ours.norm}\2.\3"),
        Join(
            rf"{block}self_attn\.(?P<part>[qkv])_proj\.(weight|bias)",
            rf"{to}.{ours.qkv}\3",
            order=("q", "k", "v"),
        ),
        Rule(rf"{block}self_attn\.out_proj\.(weight|bias)", rf"{to}.{ours.out}\2"),
        Rule(rf"{block}mlp\.fc1\.(weight|bias)", rf"{to}.{ours.up}\2"),
        Rule(rf"{block}mlp\.fc2\.(weight|bias)", rf"{to}.{ours.down}\2"),
    ]


def export_block_rules(prefix: str, ours: BlockNames) -> list[AnyRule]:
    """Our names to transformers', each below ``prefix``."""
    block, to = rf"{re.escape(ours.blocks)}\.(\d+)\.", rf"{prefix}encoder.layers.\1"
    norm, qkv, out, up, down = (re.escape(name) for name in ours[1:])
    return [
        Rule(rf"{block}{norm}([12])\.(weight|bias)", rf"{to}.layer_norm\2.\3"),
        Split(
            rf"{block}{qkv}(weight|bias)",
            tuple(rf"{to}.self_attn.{part}_proj.\2" for part in "qkv"),
            thirds,
        ),
        Rule(rf"{block}{out}(weight|bias)", rf"{to}.self_attn.out_proj.\2"),
        Rule(rf"{block}{up}(weight|bias)", rf"{to}.mlp.fc1.\2"),
        Rule(rf"{block}{down}(weight|bias)", rf"{to}.mlp.fc2.\2"),
    ]


def read_activation(
    name: str, config: CLIPVisionConfig | SiglipVisionConfig, known: Mapping[str, T]
) -> T:
    """What ``known`` has for the tower's activation; ValueError where that is nothing."""
    if config.hidden_act not in known:
        raise ValueError(
            f"image tower {name}: hidden_act={config.hidden_act!r} is not one of {sorted(known)}"
        )
    return known[config.hidden_act]
