"""Count what the collectives of a training's steps move, in each of its ranks.

    torchrun --nproc-per-node 2 -m benchmarks.traffic OUTPUT RECIPE...

Every recipe is trained, one after the other; rank 0 writes its steps to OUTPUT/name of the file.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# torch's operators of collectives -> how they are called here, and which argument is as large as
# what all ranks together give or get.
COLLECTIVES = {
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "allgather_": ("all-gather", 0),
    "allgather_into_tensor_coalesced_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
    "reduce_": ("reduce", 0),
    "broadcast_": ("broadcast", 0),
    "alltoall_base_": ("all-to-all", 0),
    "alltoall_": ("all-to-all", 0),
}
SILENT = ("barrier", "monitored_barrier_")


class Traffic(TorchDispatchMode):
    """While it is entered, the bytes of all collectives of this thread, by kind.

    Bytes are those of the whole tensor, which ranks share or have parts of. ValueError for an
    operator of torch.distributed that is not in COLLECTIVES.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("c10d::")
        if func.namespace == "c10d" and name not in SILENT:
            if name not in COLLECTIVES:
                raise ValueError(f"c10d::{name} moves bytes that COLLECTIVES does not know")
            kind, place = COLLECTIVES[name]
            size = sum(tensor.numel() * tensor.itemsize for tensor in _tensors(args[place]))
            self.bytes[kind] = self.bytes.get(kind, 0) + size
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """A tensor, or all in a list of lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for each in value:
            yield from _tensors(each)


def by_step(recipe: str, output: Path) -> dict[str, Any]:
    """Train; the bytes of each step by kind, and what is trained."""
    from transformers import TrainerCallback

    from llava_compete.training.prepare import prepare, run

    steps: list[dict[str, int]] = []
    traffic = Traffic()

    class Count(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            traffic.bytes.clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(dict(traffic.bytes))

    trainer, _ = prepare([recipe, "--output_dir", str(output)])
    trainer.add_callback(Count())
    with traffic:
        run(trainer, None)
    parameters = list(trainer.model.parameters())
    sizes = [(getattr(p, "ds_numel", p.numel()), p) for p in parameters]
    return {
        "steps": steps,
        "parameters": sum(size for size, _ in sizes),
        "trained": sum(size for size, p in sizes if p.requires_grad),
        "experts": sum(
            getattr(weight, "ds_numel", weight.numel())
            for layers in trainer.model.moe_layers().values()
            for layer in layers
            for weight in layer.experts.parameters()
        ),
        "item": parameters[0].itemsize,
        "ranks": torch.distributed.get_world_size(),
        "competing": [
            sum(value for name, value in entry.items() if name.endswith("/competing_layers"))
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
    }


def main(argv: Sequence[str]) -> None:
    output, *recipes = argv
    for recipe in recipes:
        name = Path(recipe).stem
        found = by_step(recipe, Path(output, name))
        if torch.distributed.get_rank() == 0:
            Path(output, f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
