"""LLaVA-style models with CompeteSMoE and other mixture-of-experts routers.

The names below are imported when they are first asked for: torch and transformers take seconds, and
``llava-compete --help`` needs neither. ``llava_compete.model``, which all but MoE layers and their
configuration come with, registers the model with transformers' Auto classes.
"""

from typing import TYPE_CHECKING

from llava_compete.lazy import lazy_names

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "llava_compete.checkpoint": ["compose", "load", "save", "upcycle_model"],
            "llava_compete.model": [
                "LlavaCompeteConfig",
                "LlavaCompeteForConditionalGeneration",
                "LlavaCompeteOutput",
            ],
            "llava_compete.moe": [
                "ROUTERS",
                "CompetitionSchedule",
                "Experts",
                "MoEConfig",
                "MoELayer",
                "Router",
                "Routing",
                "RoutingChange",
            ],
            "llava_compete.self_contrast": ["SelfContrast"],
        },
    )

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
