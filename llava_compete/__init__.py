"""LLaVA-style models with CompeteSMoE and other mixture-of-experts routers.

Importing this package registers the model with transformers' Auto classes.
"""

from llava_compete.checkpoint import compose, load, save, upcycle_model
from llava_compete.model import (
    LlavaCompeteConfig,
    LlavaCompeteForConditionalGeneration,
    LlavaCompeteOutput,
)
from llava_compete.moe import (
    ROUTERS,
    CompetitionSchedule,
    Experts,
    MoEConfig,
    MoELayer,
    Router,
    Routing,
    RoutingChange,
)
from llava_compete.self_contrast import SelfContrast

__all__ = [
    "ROUTERS",
    "CompetitionSchedule",
    "Experts",
    "LlavaCompeteConfig",
    "LlavaCompeteForConditionalGeneration",
    "LlavaCompeteOutput",
    "MoEConfig",
    "MoELayer",
    "Router",
    "Routing",
    "RoutingChange",
    "SelfContrast",
    "compose",
    "load",
    "save",
    "upcycle_model",
]
