"""Recipes: flat YAML files whose keys are the fields of dataclasses; no torch in here."""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from llava_compete.names import nearest


@dataclass
class ModelArgs:
    """Which checkpoint is trained, and which of its parts."""

    checkpoint: str = field(metadata={"help": "Checkpoint directory (of compose, upcycle, train)."})
    trainable: list[str] = field(
        default_factory=lambda: ["projector"],
        metadata={
            "help": "Parts to train: vision, projector, language_model, and of the parts with "
            "experts also experts or routers alone."
        },
    )
    router: str | None = field(
        default=None,
        metadata={"help": "Router to use instead of the checkpoint's, by its name in ROUTERS."},
    )
    router_options: dict | str | None = field(
        default=None, metadata={"help": "Options of the router; those not named keep their value."}
    )
    loss_weights: dict | str | None = field(
        default=None,
        metadata={"help": "Weights of router losses by name; those not named keep their value."},
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Experts of a token instead of the checkpoint's number."}
    )
    router_parts: list[str] | None = field(
        default=None,
        metadata={"help": "Parts with experts whose routing these keys change; all by default."},
    )
    fresh_routers: bool = field(
        default=False,
        metadata={"help": "Routers begin anew, from router_seed, not with the checkpoint's."},
    )
    router_seed: int | None = field(
        default=None, metadata={"help": "Of fresh routers, instead of the checkpoint's."}
    )
    lora: dict | str | None = field(
        default=None,
        metadata={
            "help": "Train low-rank adapters of the dense linear maps of some parts, by r, alpha, "
            "dropout, targets (last names of maps; all by default) and parts (language_model by "
            "default). Experts and routers of these parts, and trainable, are trained whole."
        },
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={
            "help": "Attention by name: sdpa (of packs: row by row), flash_attention_2, eager."
        },
    )

    def __post_init__(self) -> None:
        self.checkpoint = str(Path(self.checkpoint).expanduser())
        for name in ("loss_weights", "router_options", "lora"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, json.loads(value))


@dataclass
class DataArgs:
    """Which rows are trained on."""

    data_path: str = field(metadata={"help": "LLaVA .json, .jsonl or .parquet file."})
    image_folder: str = field(metadata={"help": "Root of the rows' image files."})
    max_length: int = field(
        default=2048,
        metadata={
            "help": "Longest sequence in tokens, image tokens included; longer rows lose "
            "whole turns from their end, then the end of their first answer."
        },
    )
    linked_folders: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders outside image_folder that links in it may lead to."},
    )
    exclude: str | None = field(
        default=None,
        metadata={"help": "Rows to leave out: the file of `python -m data_prep check --drop`."},
    )
    broken_images: str = field(
        default="error",
        metadata={
            "help": "What a missing or damaged image does: error, the run ends; skip, another row "
            "takes the place, written to skipped.jsonl."
        },
    )
    max_skipped_share: float = field(
        default=0.01, metadata={"help": "Of the rows; where more are skipped the run ends."}
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "Folder that cache-features filled for the checkpoint: its frozen image tower "
            "does not run, and no picture is opened."
        },
    )

    def __post_init__(self) -> None:
        self.data_path = str(Path(self.data_path).expanduser())
        self.image_folder = str(Path(self.image_folder).expanduser())
        self.linked_folders = [str(Path(folder).expanduser()) for folder in self.linked_folders]
        if self.exclude:
            self.exclude = str(Path(self.exclude).expanduser())
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share={self.max_skipped_share} must be within 0 and 1")
        if self.features:
            self.features = str(Path(self.features).expanduser())


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; here it is a number."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe's keys and values; ValueError where it is not a flat YAML mapping."""
    if not path.is_file():
        raise ValueError(f"recipe {path} does not exist")
    try:
        recipe = yaml.load(path.read_text(), Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path} must be `key: value` lines, found {type(recipe).__name__}")
    return recipe


def parse(classes: Sequence[type], argv: Sequence[str], *, prog: str) -> tuple[Any, ...]:
    """One instance of each dataclass from ``RECIPE [--key value ...]``; what comes later wins.

    ValueError for an unknown key or flag, with the nearest names, and for a value of another type.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise ValueError(message)

    parser = Parser(
        list(classes),
        prog=prog,
        usage=f"{prog} RECIPE [--key value ...]",
        description="Keys of a recipe (YAML), and flags to override them.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if not argv or argv[0] in ("-h", "--help"):
        parser.parse_args(["--help"])
    known = {item.name for cls in classes for item in dataclasses.fields(cls) if item.init}
    recipe = read_recipe(Path(argv[0]))
    for key in recipe:
        if key not in known:
            raise ValueError(f"recipe {argv[0]}: unknown key {key!r}{nearest(key, known)}")
    flags = [*_as_flags(recipe), *argv[1:]]
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=flags, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]}{nearest(unknown[0].lstrip('-'), known)}")
    return tuple(parsed)


def given_keys(argv: Sequence[str]) -> set[str]:
    """The keys that the recipe or a flag names."""
    words = [*_as_flags(read_recipe(Path(argv[0]))), *argv[1:]]
    return {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def resolved(argv: Sequence[str], parsed: Iterable[Any]) -> dict[str, Any]:
    """The keys that the recipe and the flags gave, with the values they came to."""
    given = given_keys(argv)
    values = {}
    for part in parsed:
        for item in dataclasses.fields(part):
            if item.name in given:
                value = getattr(part, item.name)
                if dataclasses.is_dataclass(value) and not isinstance(value, type):
                    value = dataclasses.asdict(value)
                values[item.name] = value.value if isinstance(value, Enum) else value
    return values


def _as_flags(recipe: dict[str, Any]) -> list[str]:
    """The recipe as command-line words, so that one parser checks both."""
    flags = []
    for key, value in recipe.items():
        if value is None:
            continue
        flags.append(f"--{key}")
        if isinstance(value, dict):
            flags.append(json.dumps(value))
        elif isinstance(value, list):
            flags.extend(str(item) for item in value)
        else:
            flags.append(str(value))
    return flags
