"""Routers by name.

To add one: a file here with a module built from RouterSpec, a line in ROUTERS;
tests/moe/test_routers.py then runs its common properties on it.
"""

from llava_compete.moe.routers.acmoe import ACMoERouter
from llava_compete.moe.routers.adamoe import AdaMoERouter
from llava_compete.moe.routers.base import Router, RouterSpec, Routing, RoutingContext
from llava_compete.moe.routers.compete import CompeteRouter
from llava_compete.moe.routers.cosine import CosineRouter
from llava_compete.moe.routers.expert_choice import ExpertChoiceRouter
from llava_compete.moe.routers.expert_race import ExpertRaceRouter
from llava_compete.moe.routers.gatepro import GateProRouter
from llava_compete.moe.routers.hypermoe import HyperMoERouter
from llava_compete.moe.routers.maskmoe import MaskMoERouter
from llava_compete.moe.routers.perturbed_cosine import PerturbedCosineRouter
from llava_compete.moe.routers.shared_v2 import SharedV2Router
from llava_compete.moe.routers.shared_v3 import SharedV3Router
from llava_compete.moe.routers.sigmoid import SigmoidRouter
from llava_compete.moe.routers.stablemoe import StableMoERouter
from llava_compete.moe.routers.topk import TopKRouter
from llava_compete.moe.routers.usmoe import USMoERouter

__all__ = ["ROUTERS", "Router", "RouterSpec", "Routing", "RoutingContext"]

ROUTERS: dict[str, type[Router]] = {
    "topk": TopKRouter,
    "compete": CompeteRouter,
    "sigmoid": SigmoidRouter,
    "cosine": CosineRouter,
    "perturbed_cosine": PerturbedCosineRouter,
    "gatepro": GateProRouter,
    "expert_choice": ExpertChoiceRouter,
    "usmoe": USMoERouter,
    "expert_race": ExpertRaceRouter,
    "acmoe": ACMoERouter,
    "hypermoe": HyperMoERouter,
    "shared_v2": SharedV2Router,
    "shared_v3": SharedV3Router,
    "adamoe": AdaMoERouter,
    "stablemoe": StableMoERouter,
    "maskmoe": MaskMoERouter,
}
