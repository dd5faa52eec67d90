"""Routers by name.

To add one: a file here with a module built from RouterOptions, a line in ROUTERS;
tests/moe/test_routers.py then runs its common properties on it.
"""

from llava_compete.moe.routers.base import Router, RouterOptions, Routing, RoutingContext
from llava_compete.moe.routers.compete import CompeteRouter
from llava_compete.moe.routers.topk import TopKRouter

__all__ = ["ROUTERS", "Router", "RouterOptions", "Routing", "RoutingContext"]

ROUTERS: dict[str, type[Router]] = {
    "topk": TopKRouter,
    "compete": CompeteRouter,
}
