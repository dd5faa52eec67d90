"""A training checkpoint as plain Hugging Face safetensors, without a launcher."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoProcessor, GenerationConfig, LlavaProcessor

from llava_compete.checkpoint import Parameters, count_parameters, read_config, save
from llava_compete.foreign.to_llava_hf import save_llava_hf
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.training.manifest import MANIFEST, check_files, read_manifest
from llava_compete.training.states import open_states

Writer = Callable[[Model, LlavaProcessor, Path], None]
FORMATS: dict[str, Writer] = {"llava_compete": save, "llava_hf": save_llava_hf}


def export(
    checkpoint: Path, output: Path, *, dtype: torch.dtype = torch.bfloat16, write: Writer = save
) -> Parameters:
    """Write the model of any training checkpoint, ZeRO-3's shards too, as ``load`` reads it.

    Another of FORMATS makes it a checkpoint of another project.

    Trained parameters come from the optimizer's float32 copies where there are such. Parameters
    get ``dtype``, buffers keep theirs. ValueError where the checkpoint lacks a weight or a file, or
    a file is not what its manifest says.
    """
    config = read_config(checkpoint, weights=False)
    if (checkpoint / MANIFEST).is_file():
        check_files(checkpoint, read_manifest(checkpoint))
    config.dtype = dtype
    states = open_states(checkpoint)
    with torch.device("meta"):
        model = Model(config)
    parameters = dict(model.named_parameters())
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    needed = [name for name in model.state_dict() if name not in tied]
    if missing := [name for name in needed if name not in states.names]:
        raise ValueError(f"checkpoint {checkpoint} lacks {len(missing)} weights: {missing[:5]}")
    tensors = {}
    for name in needed:
        value = states.weight(name)
        tensors[name] = value.to(dtype) if name in parameters else value
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    if (checkpoint / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    write(model, AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False), output)
    return count_parameters(model)
