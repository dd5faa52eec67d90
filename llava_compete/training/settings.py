"""What a run is: the settings that a resume keeps, and those that it may change."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from transformers import PreTrainedConfig

from llava_compete.data import LlavaDataset
from llava_compete.training.args import TrainArgs

# Where files lie: the rows, and the model's config.json, are compared by what is in them.
PLACES = {"checkpoint", "data_path", "exclude", "image_folder", "linked_folders", "output_dir"}
# How long the run is. What goes by a share of the steps keeps the first run's (planned_steps).
LENGTH = {"max_steps", "num_train_epochs"}
# How the rows of a step, which are compared, are shared out; universal.py moves the states.
LAYOUT = {"deepspeed", "gradient_accumulation_steps", "per_device_train_batch_size"}
# What happens beside the steps.
BESIDE = {
    *("broken_images", "max_non_finite_share", "max_skipped_share", "non_finite"),
    *("disable_tqdm", "dry_run", "project", "report_to", "resume", "run_name", "routing_steps"),
    *("ddp_backend", "ddp_bucket_cap_mb", "ddp_timeout", "debug", "enable_jit_checkpoint"),
    *("include_num_input_tokens_seen", "local_rank", "skip_memory_metrics", "step_timeout"),
    *("resume_from_checkpoint", "torch_empty_cache_steps", "trial_save", "use_cpu"),
    *("restore_callback_states_from_checkpoint", "do_eval", "do_predict", "do_train"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
}
# The same numbers with less memory, bit for bit.
MEMORY = {
    f"{what}_checkpointing{more}" for what in ("activation", "gradient") for more in ("", "_kwargs")
}
MAY_CHANGE = PLACES | LENGTH | LAYOUT | BESIDE | MEMORY
PREFIXES = ("dataloader_", "eval_", "hub_", "log_", "logging_", "push_to_hub", "save_", "trackio_")
# Of the model's configuration: who wrote it, and in which dtype the recipe has it.
NOT_THE_MODEL = {"_name_or_path", "dtype", "transformers_version"}


def run_settings(
    parts: Iterable[Any], args: TrainArgs, dataset: LlavaDataset, config: PreTrainedConfig
) -> dict[str, Any]:
    """What a resume must not change, as JSON: keys of the recipe's dataclasses ``parts``, by name.

    ``rows`` is a fingerprint of the rows and their lengths, ``rows_per_step`` those (or packs) of
    an optimizer step, ``model.*`` the configuration of the model.
    """
    values: dict[str, Any] = {}
    for part in parts:
        for item in dataclasses.fields(part):
            if item.init and _is_kept(item.name):
                values[item.name] = _plain(getattr(part, item.name))
    values["features"] = values["features"] is not None  # of which folder says checkpoint.py
    # Below, a key that one side lacks is no difference; here experts and adapters are.
    values["parts_with_experts"] = sorted(config.moe or {})
    values["adapters"] = config.lora is not None
    values["rows"] = dataset.table.fingerprint()
    values["rows_per_step"] = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    values |= _flat("model", _plain(config.to_dict()))
    return json.loads(json.dumps(values))


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    """ValueError names every key that a resume from ``checkpoint`` would change, and the way out.

    A key that only one version of this code knows is no difference.
    """
    changed = [key for key in now if key in before and before[key] != now[key]]
    if not changed:
        return
    lines = [f"  {key}: {before[key]!r} in the checkpoint, now {now[key]!r}" for key in changed]
    raise ValueError(
        f"resume from {checkpoint} would go on with another run:\n"
        + "\n".join(lines)
        + f"\nGive these keys their old values ({checkpoint}/manifest.json has the recipe), or "
        f"begin a new run from its weights by checkpoint: {checkpoint}, resume: never and another "
        f"output_dir"
    )


def _is_kept(key: str) -> bool:
    return key not in MAY_CHANGE and not key.startswith(PREFIXES)


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in NOT_THE_MODEL:
            continue
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}.{key}", value)
        else:
            found[f"{prefix}.{key}"] = value
    return found
