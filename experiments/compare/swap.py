"""Other routers on the experts of a loaded model, in place, as ``load`` would have put them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llava_compete.model import LANGUAGE
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import MoEConfig, RoutingChange
from llava_compete.moe.routers import ROUTERS, Router


@dataclass(frozen=True)
class RouterSet:
    """A router for each MoE layer of a model, and the configuration that they are of."""

    configs: Mapping[str, MoEConfig]
    routers: Mapping[str, list[Router]]  # by part, in the order of its layers

    def all(self) -> list[Router]:
        """The routers of all parts."""
        return [router for part in self.routers.values() for router in part]

    def number_of_parameters(self) -> int:
        """What the routers may learn; a parameter that several layers share counts once."""
        found = {parameter for router in self.all() for parameter in router.parameters()}
        return sum(parameter.numel() for parameter in found)


def build(model: Model, change: RoutingChange) -> RouterSet:
    """Fresh routers of the changed parts; the others keep theirs."""
    before = model.config.moe_configs
    after = change.apply(before)
    routers: dict[str, list[Router]] = {}
    for part, layers in model.moe_layers().items():
        routers[part] = [layer.router for layer in layers]
        if part not in (change.parts or after):
            continue
        previous: Router | None = None
        for place, layer in enumerate(layers):
            spec = replace(
                layer.router.spec,
                top_k=after[part].top_k,
                # A layer's own seed is its part's and its number in the model.
                seed=layer.router.spec.seed - before[part].seed + after[part].seed,
                options=after[part].router_options,
                previous=previous,
            )
            previous = ROUTERS[after[part].router](spec)
            weight = layer.experts.down_proj
            routers[part][place] = previous.to(device=weight.device, dtype=weight.dtype)
    return RouterSet(after, routers)


def install(model: Model, chosen: RouterSet) -> None:
    """Put the routers where they belong; the experts stay as they are."""
    model.config.moe = {part: config.to_dict() for part, config in chosen.configs.items()}
    for part, layers in model.moe_layers().items():
        for layer, router in zip(layers, chosen.routers[part], strict=True):
            layer.router = router.train(model.training)
            layer.competing = False


def watch_token_ids(model: Model, sets: Mapping[str, RouterSet]) -> None:
    """Hand token ids to every layer, where one of the sets needs them; once for a model."""
    held = RouterSet(
        model.config.moe_configs,
        {part: [layer.router for layer in layers] for part, layers in model.moe_layers().items()},
    )
    for chosen in sets.values():
        if any(router.needs_token_ids for router in chosen.routers.get(LANGUAGE, ())):
            install(model, chosen)
            model.watch_token_ids()
            install(model, held)
            return
