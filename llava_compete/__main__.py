"""The command line: ``llava-compete VERB ...`` or ``python -m llava_compete VERB ...``."""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_compete.moe import MoEConfig


def compose_verb(argv: Sequence[str]) -> None:
    """Language model + image tower -> dense checkpoint directory."""
    parser = argparse.ArgumentParser(
        prog="llava-compete compose",
        description=compose_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--language_model", required=True, help="Hugging Face folder or id of a causal LM")
    add("--vision", required=True, help="open_clip model name, or timm/NAME")
    add(
        "--vision_weights",
        required=True,
        help="weight file, or a pretrained tag of an open_clip model",
    )
    add("--vision_layer", default="-2", help="block whose output is used, or 'final'")
    add("--image_size", type=int, default=None, help="pixels; None: the model's own")
    add(
        "--scales",
        type=int,
        nargs="+",
        default=[1],
        help="sizes at which a picture is looked at; 1 3: also at three times its size, in crops",
    )
    add("--image_mean", type=float, nargs=3, default=None, help="of pixels in 0..1")
    add("--image_std", type=float, nargs=3, default=None, help="of pixels in 0..1")
    add("--quick_gelu", action=argparse.BooleanOptionalAction, default=None)
    add("--projector", default="mlp2x_gelu", help="linear or mlp2x_gelu")
    add("--chat_format", default=None, help="None: by the tokenizer's own tokens")
    add(
        "--calibration_data",
        type=Path,
        default=None,
        help="LLaVA file by whose first pictures the projector's initial scale is set",
    )
    add("--image_folder", type=Path, default=None, help="root of calibration_data's images")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--seed", type=int, default=0, help="of the projector's initial values")
    add("--output", type=Path, required=True)
    args = parser.parse_args(argv)

    import torch

    from llava_compete.checkpoint import compose, count_parameters, refuse_non_empty, save
    from llava_compete.vision import describe_tower

    refuse_non_empty(args.output)
    vision = describe_tower(
        args.vision,
        _vision_layer(args.vision_layer),
        scales=tuple(args.scales),
        pretrained=args.vision_weights,
        image_size=args.image_size,
        mean=args.image_mean and tuple(args.image_mean),
        std=args.image_std and tuple(args.image_std),
        quick_gelu=args.quick_gelu,
    )
    model, processor = compose(
        args.language_model,
        vision,
        args.vision_weights,
        projector=args.projector,
        chat_format=args.chat_format,
        calibration_images=_first_images(
            args.calibration_data, args.image_folder, vision.image_size
        ),
        dtype=getattr(torch, args.dtype),
        seed=args.seed,
    )
    save(model, processor, args.output)
    print(
        f"{args.output}: {type(model.language_model).__name__}, {vision.name} "
        f"({vision.num_patches} tokens of {vision.width} an image), projector {args.projector}, "
        f"{count_parameters(model).total:,} parameters"
    )


def _vision_layer(text: str) -> int | Literal["final"]:
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"vision_layer={text!r} must be a block's index or 'final'") from None


def _first_images(file: Path | None, root: Path | None, side: int, most: int = 64) -> list["Image"]:
    from llava_compete.data import ImageFolder, image_files, read_rows

    if file is None:
        return []
    if root is None:
        raise ValueError(f"calibration_data={file} needs image_folder, the root of its images")
    rows = list(itertools.islice((row for row in read_rows(file) if image_files(row)), most))
    images = ImageFolder(root)
    return [images.open(image_files(row)[0], str(row.get("id")), side) for row in rows]


def upcycle_verb(argv: Sequence[str]) -> None:
    """Dense checkpoint -> checkpoint whose parts are mixtures of experts."""
    parser = argparse.ArgumentParser(
        prog="llava-compete upcycle",
        description=upcycle_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="dense checkpoint directory")
    add("--output", type=Path, required=True)
    add(
        "--parts",
        nargs="+",
        default=None,
        help="of vision, projector, language_model; None: language_model projector",
    )
    add(
        "--moe",
        type=Path,
        default=None,
        help="YAML file that maps each part to values of its own, MoEConfig's, in place of "
        "--parts and --layers; what it does not name comes from the flags",
    )
    add("--num_experts", type=int, default=4)
    add("--top_k", type=int, default=2)
    add("--router", default="compete", help="a name in ROUTERS, such as topk")
    add(
        "--layers",
        type=int,
        nargs="+",
        default=None,
        help="decoder layers to turn into experts; None: all",
    )
    add(
        "--perturbation",
        type=float,
        default=0.0,
        help="noise on the copies, in standard deviations of the weight; 0 keeps the output",
    )
    add("--seed", type=int, default=42, help="of the gates and the perturbation")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args(argv)

    from llava_compete.checkpoint import load, refuse_non_empty, save, upcycle_model

    refuse_non_empty(args.output)
    configs = _moe_configs(args)
    model, processor = load(args.checkpoint, dtype=args.dtype)
    report = upcycle_model(model, configs, perturbation=args.perturbation, seed=args.seed)
    save(model, processor, args.output)
    for part, layers in model.moe_layers().items():
        config = configs[part]
        print(
            f"{part}: {len(layers)} layers of {config.num_experts} experts, top {config.top_k}, "
            f"router {config.router}"
        )
    print(
        f"largest difference of a logit, before and after: {report.largest_difference:.2e} "
        f"(largest logit {report.largest_logit:.2f})"
    )
    for name, parameters in (("dense", report.before), ("experts", report.after)):
        print(f"{name:8} {parameters.total:14,} parameters {parameters.active:14,} active")


def _moe_configs(args: argparse.Namespace) -> dict[str, "MoEConfig"]:
    """Of each part to upcycle: what ``--moe`` says of it, and what the flags say of all."""
    from llava_compete.config import read_recipe
    from llava_compete.moe import MoEConfig
    from llava_compete.names import nearest

    flags = {name: getattr(args, name) for name in ("num_experts", "top_k", "router", "seed")}
    if args.moe is None:
        parts = args.parts or ["language_model", "projector"]
        if args.layers and "language_model" not in parts:
            raise ValueError(f"layers={args.layers} are of the language model; parts={parts}")
        layers = {"language_model": args.layers}
        return {part: MoEConfig(**flags, layers=layers.get(part)) for part in parts}
    if args.parts or args.layers:
        raise ValueError(f"moe={args.moe} names parts and their layers: no --parts, no --layers")
    configs = {}
    known = [item.name for item in dataclasses.fields(MoEConfig)]
    for part, values in read_recipe(args.moe).items():
        if not isinstance(values, dict):
            raise ValueError(f"{args.moe}: {part} must be a mapping, such as {{num_experts: 8}}")
        for key in values:
            if key not in known:
                raise ValueError(f"{args.moe}: {part}: unknown key {key!r}{nearest(key, known)}")
        try:
            configs[part] = MoEConfig(**{**flags, **values})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{args.moe}: {part}: {error}") from error
    return configs


def count_verb(argv: Sequence[str]) -> None:
    """Parameters and FLOPs of checkpoints or of named models, without their weights."""
    from llava_compete.count import LEGEND, NAMED, as_json, as_table, read_model

    parser = argparse.ArgumentParser(
        prog="llava-compete count",
        description=count_verb.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:12} {config.__doc__}" for name, config in NAMED.items()),
    )
    parser.add_argument("models", nargs="+", help="checkpoint directories, or names of the below")
    parser.add_argument("--json", action="store_true", help="a list of JSON objects, no table")
    args = parser.parse_args(argv)
    models = {name: read_model(name) for name in args.models}
    if args.json:
        print(json.dumps([as_json(name, config) for name, config in models.items()], indent=2))
        return
    for name, config in models.items():
        print(as_table(name, config), end="\n\n")
    print(LEGEND)


def plan_verb(argv: Sequence[str]) -> None:
    """Memory of a training on each GPU, by ZeRO stage and batch size, from config.json alone."""
    from llava_compete.plan import as_table, plan_of

    parser = argparse.ArgumentParser(
        prog="llava-compete plan",
        description=plan_verb.__doc__,
        usage="llava-compete plan RECIPE [--gpus N] [--gpu-memory GIB] [--key value ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("recipe", help="recipe of a training; flags that follow override its keys")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GiB of each")
    args, flags = parser.parse_known_args(argv)
    plan = plan_of([args.recipe, *flags], args.gpus, args.gpu_memory)
    print(as_table(plan, args.gpu_memory))


def train_verb(argv: Sequence[str]) -> Callable[[], None]:
    """Train a checkpoint by a recipe; RECIPE --help lists all keys."""
    from llava_compete.training.dry_run import describe
    from llava_compete.training.prepare import prepare, run

    trainer, resume_from = prepare(argv)
    if trainer.args.dry_run:
        return lambda: print(describe(trainer)) if trainer.is_world_process_zero() else None
    return lambda: run(trainer, resume_from)


def export_verb(argv: Sequence[str]) -> None:
    """Training checkpoint, ZeRO-3 shards too -> plain checkpoint directory, without a launcher."""
    parser = argparse.ArgumentParser(
        prog="llava-compete export",
        description=export_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint-N of a training, or its output directory")
    add("output", type=Path, help="directory to make")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of the parameters")
    add(
        "--format",
        default="llava_compete",
        choices=["llava_compete", "llava_hf"],
        help="llava_hf: transformers' LlavaForConditionalGeneration, where it has a place for all",
    )
    args = parser.parse_args(argv)

    import torch

    from llava_compete.checkpoint import refuse_non_empty
    from llava_compete.training.export import FORMATS, export

    refuse_non_empty(args.output)
    dtype, write = getattr(torch, args.dtype), FORMATS[args.format]
    parameters = export(args.checkpoint, args.output, dtype=dtype, write=write)
    print(f"{args.output}: {parameters.total:,} parameters in {args.dtype}")


def import_verb(argv: Sequence[str]) -> None:
    """Checkpoint of LLaVA-1.5 or of CompeteSMoE / LibMoE -> checkpoint directory."""
    from llava_compete.foreign.verb import import_verb as verb

    verb(argv)


def merge_verb(argv: Sequence[str]) -> None:
    """Checkpoint with low-rank adapters -> the same model without, their sum in its weights."""
    parser = argparse.ArgumentParser(prog="llava-compete merge", description=merge_verb.__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint directory of a training with lora")
    add("--output", type=Path, required=True)
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the sums, too")
    args = parser.parse_args(argv)

    from llava_compete.checkpoint import load, refuse_non_empty, save
    from llava_compete.lora import merge_lora

    refuse_non_empty(args.output)
    model, processor = load(args.checkpoint, dtype=args.dtype)
    merged = merge_lora(model)
    save(model, processor, args.output)
    print(f"{args.output}: {merged} adapters merged")


def routing_verb(argv: Sequence[str]) -> None:
    """What the routers of a checkpoint do with rows of a LLaVA file: routing.json, routing.html."""
    parser = argparse.ArgumentParser(
        prog="llava-compete routing",
        description=routing_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint directory with experts")
    add("data", type=Path, help="LLaVA .json or .jsonl file")
    add("--image_folder", type=Path, required=True, help="root of the rows' image files")
    add("--output", type=Path, required=True, help="directory for both files")
    add("--other", type=Path, default=None, help="checkpoint to compare the choices with")
    add("--rows", type=int, default=None, help="so many, evenly spread; None: all")
    add("--batch_size", type=int, default=4)
    add("--max_length", type=int, default=2048, help="longest sequence in tokens, as in training")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args(argv)

    from llava_compete.routing.report import write_report

    for path in write_report(**vars(args)):
        print(path)


def cache_features_verb(argv: Sequence[str]) -> None:
    """Features of a frozen image tower, made once for trainings that do not train it."""
    parser = argparse.ArgumentParser(
        prog="llava-compete cache-features",
        description=f"{cache_features_verb.__doc__} Also under torchrun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint directory; only its image tower is read")
    add("data", type=Path, nargs="+", help="data files whose pictures are meant")
    add("--image_folder", type=Path, required=True, help="root of the rows' image files")
    add("--output", type=Path, required=True, help="folder; what is whole in it stays")
    add("--linked_folders", type=Path, nargs="*", default=[], help="as in training")
    add(
        "--exclude", type=Path, nargs="*", default=[], help="as in training, one for each data file"
    )
    add("--batch_size", type=int, default=32, help="pictures of a forward")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="tower and features")
    add("--num_workers", type=int, default=4, help="processes that open pictures")
    args = parser.parse_args(argv)

    from llava_compete.cache_features import cache_features

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cache = cache_features(**vars(args), rank=rank, world_size=world_size)
    if cache is None:
        print(f"rank {rank}: its shards are there, other processes are still at theirs")
    else:
        info = cache.info
        print(
            f"{args.output}: {len(cache):,} pictures, {info.num_patches} x {info.width} "
            f"{info.dtype} each, {info.num_shards} shards"
        )


VERBS = {
    "compose": compose_verb,
    "upcycle": upcycle_verb,
    "import": import_verb,
    "count": count_verb,
    "plan": plan_verb,
    "train": train_verb,
    "merge": merge_verb,
    "export": export_verb,
    "routing": routing_verb,
    "cache-features": cache_features_verb,
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="llava-compete",
        description="Compose, upcycle, count and train LLaVA-style models with mixtures of "
        "experts. Evaluation: python -m eval. Data: python -m data_prep.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:14} {verb.__doc__}" for name, verb in VERBS.items()),
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of the below")
    args = parser.parse_args(argv[:1])
    try:
        work = VERBS[args.verb](argv[1:])
    except (ValueError, OSError) as error:  # transformers says OSError where a model is not found
        sys.exit(f"llava-compete {args.verb}: error: {error}")
    if work is not None:
        # Outside the try: a failure in the middle of training keeps its traceback.
        work()


if __name__ == "__main__":
    main()
