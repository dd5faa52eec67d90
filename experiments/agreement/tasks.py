"""Competitions to learn from: experts made to a recipe, and those of a checkpoint.

T tokens, E experts, D width, F hidden width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.agreement.gates import Outcomes
from llava_compete.config import DataArgs, ModelArgs, parse
from llava_compete.data import Collator
from llava_compete.moe import Experts, MoELayer
from llava_compete.moe.elementwise import affinity
from llava_compete.training.args import TrainArgs

WIDTH, HIDDEN, CLUSTERS = 128, 256, 32


@torch.no_grad()
def synthetic(
    *, perturbation: float = 0.0, dropped: float = 0.0, num_experts: int = 4, tokens: int, seed: int
) -> Outcomes:
    """Copies of one gated FFN that part by noise or by drop-upcycling, on clustered tokens.

    ``perturbation``: Gaussian noise in standard deviations of each weight, as ``upcycle`` adds.
    ``dropped``: share of the hidden units that each expert begins anew, drawn apart for each
    (drop-upcycling, arXiv:2502.19261). Tokens: a mixture of Gaussians, each at root mean square 1
    as behind an RMSNorm.
    """
    generator = torch.Generator().manual_seed(seed)
    experts = Experts(num_experts, WIDTH, HIDDEN, WIDTH, activation="silu", gated=True, bias=False)
    for name, weight in experts.weights().items():
        fan_in = HIDDEN if name == "down_proj" else WIDTH
        dense = torch.randn(weight.shape[1:], generator=generator) * fan_in**-0.5
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(dense + perturbation * noise * dense.std())
    for expert in range(num_experts):
        units = torch.randperm(HIDDEN, generator=generator)[: int(dropped * HIDDEN)]
        for name in experts.inner_names():
            fresh = torch.randn(WIDTH, len(units), generator=generator) * WIDTH**-0.5
            experts.get_parameter(f"{name}_proj")[expert][:, units] = fresh
        fresh = torch.randn(WIDTH, len(units), generator=generator) * HIDDEN**-0.5
        experts.down_proj[expert][:, units] = fresh
    centres = torch.randn(CLUSTERS, WIDTH, generator=generator)
    chosen_T = torch.randint(CLUSTERS, (tokens,), generator=generator)
    x_TD = centres[chosen_T] + torch.randn(tokens, WIDTH, generator=generator)
    x_TD = x_TD / x_TD.square().mean(dim=-1, keepdim=True).sqrt()
    return Outcomes(x_TD, affinity(experts.all_outputs(x_TD)))


@torch.no_grad()
def of_model(model: Any, dataset: Any, processor: Any, rows: range) -> dict[str, Outcomes]:
    """The competition of every MoE layer on the tokens that count of these rows, by layer name."""
    model.eval()
    kept: dict[str, list[Outcomes]] = {}
    layers = {
        f"{part} {index}": layer
        for part, found in model.moe_layers().items()
        for index, layer in enumerate(found)
    }

    def listen(name: str) -> Any:
        def record(layer: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
            assert isinstance(layer, MoELayer)
            x_TD = args[0].reshape(-1, args[0].shape[-1])
            if layer.mask_T is not None:
                x_TD = x_TD[layer.mask_T]
            kept.setdefault(name, []).append(
                Outcomes(x_TD.float(), affinity(layer.experts.all_outputs(x_TD)))
            )

        return record

    handles = [layer.register_forward_hook(listen(name)) for name, layer in layers.items()]
    collate = Collator(processor)
    for begin in tqdm(rows[::8], desc="competitions", leave=False):
        batch = collate([dataset[row] for row in range(begin, min(begin + 8, rows.stop))])
        model(**batch)
    for handle in handles:
        handle.remove()
    return {
        name: Outcomes(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))
        for name, found in kept.items()
    }


def recipe_args(recipe: str) -> tuple[ModelArgs, DataArgs]:
    """The checkpoint and the data that a training recipe names."""
    model_args, data_args, _ = parse((ModelArgs, DataArgs, TrainArgs), [recipe], prog="agreement")
    return model_args, data_args
