"""A foreign checkpoint under our names -> a checkpoint directory of ours.

V tokens of the vocabulary, D language width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaProcessor, PreTrainedTokenizerBase

from llava_compete.checkpoint import Model, new_directory
from llava_compete.foreign.keys import AnyRule, Report, map_keys
from llava_compete.model import LlavaCompeteConfig
from llava_compete.processor import IMAGE_TOKEN, build_processor, chat_format, end_of_turn_id

REPORT = "import_report.txt"  # what became of each key, beside the imported weights
EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


class Imported(NamedTuple):
    """Our configuration, the tensors under our names, and what became of each key."""

    config: LlavaCompeteConfig
    tensors: dict[str, Tensor]
    report: Report


def import_state(
    config: LlavaCompeteConfig,
    state: Mapping[str, Tensor],
    rules: Sequence[AnyRule],
    *,
    source: str,
) -> Imported:
    """``state`` as the model of ``config`` wants it; ValueErrors of map_keys.

    A head that is tied to the embeddings may be there too, and must then be equal to them.
    """
    with torch.device("meta"):
        model = Model(config)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    tied = config.text_config.tie_word_embeddings
    if tied and not any(key.endswith("lm_head.weight") for key in state):
        del wanted[HEAD]
    tensors, report = map_keys(state, rules, wanted, source=source)
    if tied and HEAD in tensors and not torch.equal(tensors.pop(HEAD), tensors[EMBEDDINGS]):
        raise ValueError(
            f"{source}: lm_head differs from the embeddings, to which config.json ties it "
            f"(tie_word_embeddings)"
        )
    return Imported(config, tensors, report)


def build(
    imported: Imported,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype = torch.float32,
    format_name: str | None = None,
) -> tuple[Model, LlavaProcessor]:
    """The model, in evaluation mode, and its processor.

    Without ``format_name`` a tokenizer that brings no markers of a chat gets Vicuna's format, with
    which LLaVA-1.5 was trained. Tokens that the embeddings have no row for get the others' mean.
    """
    if format_name is None and not chat_format(tokenizer).tokens:
        format_name = "vicuna"
    config = imported.config
    processor = build_processor(tokenizer, config.vision, format_name=format_name)
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    tensors = {**imported.tensors}
    if len(tokenizer) > config.text_config.vocab_size:
        config.text_config.vocab_size = len(tokenizer)
        for name in {EMBEDDINGS, HEAD} & set(tensors):
            tensors[name] = _with_rows(tensors[name], len(tokenizer))
    config.dtype = dtype
    model = Model.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_of_turn_id(processor),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval(), processor


def _with_rows(weight_VD: Tensor, rows: int) -> Tensor:
    mean_D = weight_VD.float().mean(dim=0).to(weight_VD.dtype)
    return torch.cat([weight_VD, mean_D.expand(rows - len(weight_VD), -1)])


def save_imported(model: Model, processor: LlavaProcessor, report: Report, path: Path) -> None:
    """Write a checkpoint directory with its report, whole or not at all."""
    with new_directory(path) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / REPORT).write_text("\n".join(report.lines()) + "\n")
