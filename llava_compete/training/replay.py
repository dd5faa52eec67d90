"""Which layer is the first whose values are not finite, by running a batch once more."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

from llava_compete.data.rows import row_name
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe.routers import Routing

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer


class Found(NamedTuple):
    """The first layer whose output (forward), or whose output's gradient (backward), is not finite.

    None where the values are finite now: what a router draws at random it draws anew.
    """

    layer: str | None
    where: str | None  # "forward" or "backward"


def replay(
    model: Model, inputs: Mapping[str, Any], competing: Sequence[bool], engine: nn.Module
) -> Found:
    """Run a micro-batch forward and, if that is finite, backward, and look at every layer.

    No parameter's gradient, no router's state and no random state is other than before. Every rank
    has to call this, as often as the others. ``engine`` is the model as the trainer runs it.
    """
    seen: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(_keeper(name or "loss", seen))
        for name, module in model.named_modules()
    ]
    with _as_before(model), _untraced(engine), torch.random.fork_rng():
        model.set_competing(competing)
        try:
            loss = model(**inputs).loss
        finally:
            for handle in handles:
                handle.remove()
        layer = _first_bad(seen)
        # Alike on all ranks: ZeRO-3 gathers parameters in the backward, too.
        graded = [(name, value) for name, value in seen if value.requires_grad]
        gradients = torch.autograd.grad(loss, [value for _, value in graded], allow_unused=True)
    if layer is not None:
        return Found(layer, "forward")
    back = [
        (name, gradient)
        for (name, _), gradient in zip(graded, gradients, strict=True)
        if gradient is not None
    ]
    layer = _first_bad(back[::-1])
    return Found(layer, None if layer is None else "backward")


def bad_parameters(model: nn.Module) -> list[str]:
    """Names of parameters that hold a value that is not finite, on any rank."""
    names, flags = [], []
    for name, parameter in model.named_parameters():
        held = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.detach()
        names.append(name)
        flags.append(~held.isfinite().all())
    bad_P = torch.stack(flags).int()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(bad_P, op=torch.distributed.ReduceOp.MAX)
    return [name for name, bad in zip(names, bad_P.tolist(), strict=True) if bad]


def rows_of(trainer: "LlavaTrainer", step: int) -> list[list[dict[str, Any]]]:
    """The rows, by number and id, of each micro-batch of this rank in optimizer step ``step``.

    From the order of the data, a function of seed and epoch. A row in whose place another came,
    because its picture was broken, stands here itself; skipped.jsonl has the other.
    """
    loader = trainer.get_train_dataloader()
    each = trainer.args.gradient_accumulation_steps
    epoch, update = divmod(step, math.ceil(len(loader) / each))
    loader.set_epoch(epoch)  # type: ignore[attr-defined]
    assert loader.batch_sampler is not None
    batches = itertools.islice(iter(loader.batch_sampler), update * each, (update + 1) * each)
    dataset = trainer.train_dataset
    found = []
    for batch in batches:
        flat = [i for unit in batch for i in (unit if isinstance(unit, tuple) else (unit,))]
        numbers = [(index, dataset.table.number(index)) for index in flat]
        found.append([{"row": n, "id": row_name(dataset.row(i), n)} for i, n in numbers])
    return found


def _keeper(name: str, seen: list[tuple[str, Tensor]]) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend((name, value) for value in _values(output))

    return keep


def _values(output: Any) -> Iterator[Tensor]:
    """Floating tensors of a module's output."""
    if isinstance(output, Routing):  # its scores may be -inf: an expert that cannot be chosen
        yield from _values((output.weights_TK, output.outputs_TKO, output.losses))
    elif isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            if name not in ("losses", "metrics"):  # of the model's: NaN there says "no token"
                yield from _values(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _values(value)


def _first_bad(named: Sequence[tuple[str, Tensor]]) -> str | None:
    if not named:
        return None
    bad_V = torch.stack([~value.detach().isfinite().all() for _, value in named])
    return next((name for (name, _), bad in zip(named, bad_V.tolist(), strict=True) if bad), None)


@contextmanager
def _untraced(engine: nn.Module) -> Iterator[None]:
    """ZeRO-3 fetches by the order of an earlier step and fails in a backward that has another."""
    if not (isinstance(engine, DeepSpeedEngine) and engine.zero_optimization_partition_weights()):
        yield
        return
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    yield
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


@contextmanager
def _as_before(model: Model) -> Iterator[None]:
    """Router state, what routers have counted in the step under way, and who competes, restored."""
    routers = [layer.router for part in model.moe_layers().values() for layer in part]
    competing = [layer.competing for layer in model.competitors()]
    buffers = [(buffer, buffer.clone()) for router in routers for buffer in router.buffers()]
    # Counted sums are new tensors after every forward, so that the old ones are still whole.
    plain = [(router, vars(router).copy()) for router in routers]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for router, attributes in plain:
            vars(router).update(attributes)
        model.set_competing(competing)
