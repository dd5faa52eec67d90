"""Sparse mixtures of experts that stand where dense feed-forward layers stood."""

from llava_compete.moe.config import MoEConfig, RoutingChange
from llava_compete.moe.experts import Experts
from llava_compete.moe.layer import MoELayer
from llava_compete.moe.routers import ROUTERS, Router, Routing, RoutingContext
from llava_compete.moe.schedule import CompetitionSchedule
from llava_compete.moe.sequences import Sequences

__all__ = [
    "ROUTERS",
    "CompetitionSchedule",
    "Experts",
    "MoEConfig",
    "MoELayer",
    "Router",
    "Routing",
    "RoutingChange",
    "RoutingContext",
    "Sequences",
]
