"""compose, upcycle and load checkpoint directories."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaProcessor,
)
from transformers.utils import logging as transformers_logging

from llava_compete.chunked_loss import give_losses
from llava_compete.model import LlavaCompeteConfig, LlavaCompeteForConditionalGeneration
from llava_compete.moe import MoEConfig, RoutingChange
from llava_compete.moe.routers.base import reset_router
from llava_compete.moe.upcycle import upcycle
from llava_compete.processor import IMAGE_TOKEN, build_processor, end_of_turn_id
from llava_compete.projector import build_projector, calibrate
from llava_compete.vision import VisionConfig, load_tower
from llava_compete.weight_files import read_folder, read_index

Model = LlavaCompeteForConditionalGeneration


def compose(
    language_model: str,
    vision: VisionConfig,
    vision_weights: str,
    *,
    projector: str = "mlp2x_gelu",
    chat_format: str | None = None,
    calibration_images: Sequence[Image.Image] = (),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Model, LlavaProcessor]:
    """A dense model of a Hugging Face causal language model and an open_clip image tower.

    The projector is fresh; with ``calibration_images`` it is scaled so that these pictures'
    embeddings begin with the spread of the language model's own (see projector.calibrate).
    """
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    language = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    decoder_layers = getattr(getattr(language, "model", None), "layers", None)
    if decoder_layers is None:
        raise ValueError(
            f"language model {language_model} is a {type(language).__name__}; supported are "
            f"causal models whose decoder layers stand in model.layers (Llama, Mistral, Phi-3, "
            f"Qwen2, Qwen3 and their like)"
        )
    tower = load_tower(vision, vision_weights).to(dtype)
    processor = build_processor(tokenizer, vision, format_name=chat_format)
    torch.manual_seed(seed)  # of the new tokens' embeddings and of the projector
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer))
    config = LlavaCompeteConfig(
        text_config=language.config,
        vision_config=vision.to_dict(),
        projector=projector,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        dtype=dtype,
    )
    with torch.device("meta"):
        model = Model(config)
    give_losses(language)
    model.language_model = language
    model.vision = tower
    model.projector = build_projector(projector, vision.width, language.config.hidden_size)
    if calibration_images:
        pixels = processor.image_processor(list(calibration_images), return_tensors="pt")[
            "pixel_values"
        ]
        with torch.no_grad():
            features = tower(pixels.to(dtype)).float().flatten(0, 1)
        embeddings = language.get_input_embeddings().weight.detach()
        calibrate(model.projector, features, output_std=float(embeddings.float().std()))
    model.projector.to(dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_of_turn_id(processor),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval(), processor


class Parameters(NamedTuple):
    """How many numbers a model holds, and how many of them one token meets."""

    total: int
    active: int


class UpcycleReport(NamedTuple):
    """What upcycling did to the output and to the size."""

    largest_difference: float  # of any logit
    largest_logit: float
    before: Parameters
    after: Parameters


def count_parameters(model: Model) -> Parameters:
    """Total and active; a token meets K of the E experts of each MoE layer."""
    total = sum(parameter.numel() for parameter in model.parameters())
    configs = model.config.moe_configs
    idle = 0
    for part, layers in model.moe_layers().items():
        share = 1 - configs[part].top_k / configs[part].num_experts
        idle += sum(
            round(share * p.numel()) for layer in layers for p in layer.experts.parameters()
        )
    return Parameters(total, total - idle)


def upcycle_model(
    model: Model,
    configs: Mapping[str, MoEConfig],
    *,
    perturbation: float = 0.0,
    seed: int = 0,
) -> UpcycleReport:
    """Turn a dense model's parts into mixtures of experts, in place, and compare its output.

    Without perturbation the logits before and after must agree to 1e-5 in float32 (to rounding
    of the dtype otherwise), relative to the largest; RuntimeError where they do not. A router
    whose weights do not sum to 1 moves the output; the report says by how much.
    """
    if model.moe_layers():
        raise ValueError(f"the model has experts already, in {sorted(model.moe_layers())}")
    if model.config.lora is not None:
        raise ValueError("the model has adapters: make them a part of it by `llava-compete merge`")
    before, logits_before = count_parameters(model), _probe(model)
    upcycle(model, configs, perturbation=perturbation, seed=seed)
    model.watch_token_ids()
    model.config.moe = {part: config.to_dict() for part, config in configs.items()}
    logits_after = _probe(model)
    report = UpcycleReport(
        largest_difference=float((logits_after - logits_before).abs().max()),
        largest_logit=float(logits_before.abs().max()),
        before=before,
        after=count_parameters(model),
    )
    tolerance = 1e-5 if model.dtype == torch.float32 else 8 * torch.finfo(model.dtype).eps
    routers = [layer.router for layers in model.moe_layers().values() for layer in layers]
    equal = not perturbation and all(router.sums_to_one for router in routers)
    if equal and report.largest_difference > tolerance * max(1, report.largest_logit):
        raise RuntimeError(
            f"upcycling changed the output by {report.largest_difference:.2e} "
            f"(largest logit {report.largest_logit:.2e}, allowed {tolerance:.0e} of it)"
        )
    return report


@torch.no_grad()
def _probe(model: Model) -> torch.Tensor:
    """Logits of a fixed picture and fixed ids, float32."""
    generator = torch.Generator().manual_seed(0)
    vision = model.config.vision
    text = torch.randint(0, model.config.image_token_id, (1, 32), generator=generator)
    image = torch.full((1, vision.num_patches), model.config.image_token_id)
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
    return model.eval()(torch.cat([image, text], dim=1), pixel_values=pixels).logits.float()


def load(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    routing: RoutingChange | None = None,
    **kwargs: Any,
) -> tuple[Model, LlavaProcessor]:
    """Model (in evaluation mode) and processor of a checkpoint directory.

    ``routing`` puts the experts under another router. ``kwargs`` go to from_pretrained.
    ValueError where the directory is incomplete, and where the checkpoint's router weights are
    not those of the router asked for, unless ``routing.fresh`` lets routers begin anew.
    """
    path = Path(path)
    config = read_config(path)
    routing = routing or RoutingChange()
    if routing:
        changed = changed_configs(config, routing, path)
        config.moe = {part: moe_config.to_dict() for part, moe_config in changed.items()}
    anew = tuple(routing.parts or config.moe_configs) if routing.fresh else ()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # _check_loaded says what does not fit
    try:
        model, info = Model.from_pretrained(
            None if anew else path,
            state_dict=_without_routers(path, anew) if anew else None,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    _check_loaded(info, path, routing, config)
    if anew and (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    for part in anew:
        for layer in model.moe_layers()[part]:
            reset_router(layer.router)
    return model, AutoProcessor.from_pretrained(path, trust_remote_code=False)


def _without_routers(path: Path, parts: Sequence[str]) -> dict[str, torch.Tensor]:
    """A checkpoint's weights but those of the parts' routers.

    A gate of another shape than the fresh router's would end ZeRO-3's loading.
    """
    routers = _of_routers(parts)
    return {key: value for key, value in read_folder(path).items() if not routers.match(key)}


def _of_routers(parts: Iterable[str]) -> re.Pattern[str]:
    """What the names of the parts' routers' weights begin with."""
    return re.compile(rf"\W*(?:{'|'.join(parts)})\.(?:.*\.)?router\.")


def changed_configs(
    config: LlavaCompeteConfig, routing: RoutingChange, path: Path
) -> dict[str, MoEConfig]:
    """The parts' configurations under another routing; ValueError where it does not fit them."""
    if routing and not config.moe:
        raise ValueError(
            f"checkpoint {path} is dense: another routing needs experts; "
            f"`llava-compete upcycle` makes them"
        )
    return routing.apply(config.moe_configs)


def _check_loaded(
    info: Mapping[str, Any], path: Path, routing: RoutingChange, config: LlavaCompeteConfig
) -> None:
    faults = {
        name: sorted(map(str, info[name]))
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[name]
    }
    of_routers = _of_routers(routing.parts or config.moe_configs)
    others = {
        name: found
        for name, keys in faults.items()
        if (found := [key for key in keys if not of_routers.match(key)])
    }
    if others or (faults and not routing):
        raise ValueError(f"checkpoint {path} does not fit its config.json: {faults}")
    if faults and not routing.fresh:
        raise ValueError(
            f"checkpoint {path} has the weights of another router than {routing.router}: "
            f"{faults}; let routers begin anew (fresh_routers: true) and train them, or choose "
            f"a router with the same gate"
        )


def read_config(path: Path, *, weights: bool = True) -> LlavaCompeteConfig:
    """config.json of a checkpoint directory; ValueError where it or another file is missing.

    Without ``weights`` only what a processor needs must be there.
    """
    config = read_shape(path)
    needed = [
        *(weight_files(path) if weights else []),
        "processor_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    if missing := [name for name in needed if not (path / name).is_file()]:
        raise ValueError(f"checkpoint {path} is incomplete: it has no {', '.join(missing)}")
    return config


def read_shape(path: Path) -> LlavaCompeteConfig:
    """config.json of a directory that need have no other file; ValueError where it is none."""
    if not path.is_dir():
        raise ValueError(f"checkpoint {path} is not a directory")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ValueError(f"checkpoint {path} is incomplete: it has no config.json")
    model_type = json.loads(config_file.read_text()).get("model_type")
    if model_type != LlavaCompeteConfig.model_type:
        raise ValueError(
            f"checkpoint {path} holds a {model_type!r} model, not "
            f"{LlavaCompeteConfig.model_type!r}: `llava-compete compose` makes one of a language "
            f"model and an image tower"
        )
    return LlavaCompeteConfig.from_pretrained(path)


def weight_files(path: Path) -> list[str]:
    """Names of the files that hold the weights of a checkpoint directory; none is outside it."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    return sorted(set(read_index(index).values()))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that takes the name ``path`` only when it is whole.

    ValueError where ``path`` exists and is not empty: nothing is overwritten.
    """
    refuse_non_empty(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        path.rmdir()
    partial.rename(path)


def refuse_non_empty(path: Path) -> None:
    """ValueError where ``path`` is a file or a directory that holds something."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"output {path} exists and is not empty: name another or remove it")


def save(model: Model, processor: LlavaProcessor, path: Path) -> None:
    """Write a checkpoint directory, whole or not at all."""
    with new_directory(path) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
