"""Shape and routing of the MoE layers of one part of the model."""

from dataclasses import asdict, dataclass, field
from typing import Any

from llava_compete.moe.routers import ROUTERS
from llava_compete.names import nearest

# Unweighted losses a router may return, with the coefficients of the CompeteSMoE runs
# (arXiv:2505.13380; docs/papers.md lists which source says what).
DEFAULT_LOSS_WEIGHTS = {
    "balance": 0.01,
    "router_z": 0.001,
    "distillation": 0.01,
    "diversity": 0.01,
    "competition_balance": 0.01,
}


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """How one part (language model, projector) is turned into experts; saved in config.json.

    Raises ValueError where a value is impossible.
    """

    num_experts: int = 4
    top_k: int = 2
    router: str = "compete"  # a name in llava_compete.moe.routers.ROUTERS
    layers: tuple[int, ...] | None = None  # decoder layers with experts; None: all of them
    loss_weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_LOSS_WEIGHTS))
    distillation_theta: float = 0.1  # extra weight of the winners' entries in the distillation
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
        unknown = sorted(set(self.loss_weights) - set(DEFAULT_LOSS_WEIGHTS))
        if unknown:
            raise ValueError(
                f"loss_weights names {unknown}, which no router returns; "
                f"the losses are {sorted(DEFAULT_LOSS_WEIGHTS)}"
            )
        negative = {name: weight for name, weight in self.loss_weights.items() if weight < 0}
        if negative or self.distillation_theta < 0:
            raise ValueError(
                f"loss weights must not be negative: {negative or self.distillation_theta}"
            )
        # A partial table keeps the defaults of the losses it does not name.
        object.__setattr__(self, "loss_weights", {**DEFAULT_LOSS_WEIGHTS, **self.loss_weights})
        if self.layers is not None:
            layers = tuple(self.layers)  # JSON gives a list
            if not layers or len(set(layers)) != len(layers) or min(layers) < 0:
                raise ValueError(f"layers={layers} must be distinct indices from 0, and not empty")
            object.__setattr__(self, "layers", layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        return values
