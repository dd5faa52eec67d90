"""What DeepSpeed holds for a model with frozen parts, for test_zero_frozen.py.

    python -m tests.training.frozen_each RECIPE OUTPUT CONFIG...

Of each DeepSpeed configuration OUTPUT/NAME.json: the numbers of parameters that are trained, and
that DeepSpeed has a float32 copy, an optimizer state and, under ZeRO-3, room for a gradient of.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llava_compete.training.prepare import prepare, run


def held(optimizer: Any) -> dict[str, int]:
    """Numbers, filling up included, in what one of DeepSpeed's ZeRO optimizers keeps."""
    sharded = hasattr(optimizer, "fp32_partitioned_groups_flat")
    name = "fp32_partitioned_groups_flat" if sharded else "single_partition_of_fp32_groups"
    found = {"copies": sum(copy.numel() for copy in getattr(optimizer, name))}
    states = optimizer.optimizer.state.values()
    found["states"] = sum(state["exp_avg"].numel() for state in states)
    if sharded:
        found["gradients"] = optimizer.grad_partitions_flat_buffer.numel()
    return found


def main(recipe: str, output: str, *configs: str) -> None:
    for config in configs:
        name = Path(config).stem
        flags = ["--deepspeed", config, "--output_dir", str(Path(output, name))]
        trainer, _ = prepare([recipe, *flags])
        run(trainer, None)
        parameters = list(trainer.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        found = held(trainer.model_wrapped.optimizer)
        found["trained"] = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
        found["tensors"] = len(trained)
        found["frozen_with_gradient"] = sum(
            p.grad is not None for p in parameters if not p.requires_grad
        )
        Path(output, f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
