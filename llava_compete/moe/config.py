"""Shape and routing of the MoE layers of one part of the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from llava_compete.moe.routers import ROUTERS
from llava_compete.names import nearest


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """How one part (language model, projector, vision) is turned into experts; in config.json.

    Raises ValueError where a value is impossible.
    """

    num_experts: int = 4
    top_k: int = 2
    router: str = "compete"  # a name in llava_compete.moe.routers.ROUTERS
    router_options: dict[str, Any] = field(default_factory=dict)  # its Options, where not default
    layers: tuple[int, ...] | None = None  # decoder layers with experts; None: all of them
    loss_weights: dict[str, float] = field(default_factory=dict)  # None given: the router's own
    seed: int = 42  # of the gates' initial values, which differ from layer to layer

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts={self.num_experts} must be at least 1")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"top_k={self.top_k} must be between 1 and num_experts={self.num_experts}"
            )
        if self.router not in ROUTERS:
            raise ValueError(f"router={self.router!r} is not known{nearest(self.router, ROUTERS)}")
        self._check_router()
        if self.layers is not None:
            layers = tuple(self.layers)  # JSON gives a list
            if not layers or len(set(layers)) != len(layers) or min(layers) < 0:
                raise ValueError(f"layers={layers} must be distinct indices from 0, and not empty")
            object.__setattr__(self, "layers", layers)

    def _check_router(self) -> None:
        router = ROUTERS[self.router]
        known = [item.name for item in fields(router.Options)]
        for name in self.router_options:
            if name not in known:
                hint = nearest(name, known) if known else "; it has none"
                raise ValueError(f"router_options: {name!r} is no option of {self.router}{hint}")
        try:
            options = router.Options(**self.router_options)
        except TypeError as error:  # text where an option compares numbers
            raise ValueError(
                f"router_options={self.router_options} of {self.router}: {error}"
            ) from error
        router.check(self.num_experts, self.top_k, options)
        unknown = sorted(set(self.loss_weights) - set(router.loss_weights))
        if unknown:
            raise ValueError(
                f"loss_weights names {unknown}, which router {self.router} does not return; "
                f"its losses are {sorted(router.loss_weights)}"
            )
        negative = {name: weight for name, weight in self.loss_weights.items() if weight < 0}
        if negative:
            raise ValueError(f"loss weights must not be negative: {negative}")
        # Whole tables, so that config.json says what a later default would no longer.
        object.__setattr__(self, "router_options", asdict(options))
        object.__setattr__(self, "loss_weights", {**router.loss_weights, **self.loss_weights})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        return values


@dataclass(frozen=True, kw_only=True)
class RoutingChange:
    """Another routing for the experts of a checkpoint; None keeps what it has."""

    router: str | None = None  # begins with its own options and loss weights
    router_options: Mapping[str, Any] | None = None
    loss_weights: Mapping[str, float] | None = None
    top_k: int | None = None
    seed: int | None = None  # of the gates, where they are fresh
    parts: tuple[str, ...] | None = None  # None: all that have experts
    fresh: bool = False  # routers begin anew, from their seed, not with the checkpoint's weights

    def __bool__(self) -> bool:
        return self != RoutingChange()

    def apply(self, configs: Mapping[str, MoEConfig]) -> dict[str, MoEConfig]:
        """The parts' configurations, changed; ValueError for a part without experts."""
        for part in self.parts or ():
            if part not in configs:
                raise ValueError(
                    f"router_parts: {part!r} has no experts here{nearest(part, configs)}; "
                    f"parts with experts: {sorted(configs)}"
                )
        changed = self.parts or tuple(configs)
        return {
            part: self._changed(config) if part in changed else config
            for part, config in configs.items()
        }

    def _changed(self, config: MoEConfig) -> MoEConfig:
        kept = self.router is None or self.router == config.router
        options = {**(config.router_options if kept else {}), **(self.router_options or {})}
        weights = {**(config.loss_weights if kept else {}), **(self.loss_weights or {})}
        return replace(
            config,
            router=self.router or config.router,
            router_options=options,
            loss_weights=weights,
            top_k=config.top_k if self.top_k is None else self.top_k,
            seed=config.seed if self.seed is None else self.seed,
        )
