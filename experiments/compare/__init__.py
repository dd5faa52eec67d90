"""Routers trained from one upcycled checkpoint on the same data, steps and seeds, and compared.

A job is a (router, seed): a plain training by the recipe, then a scoring of what it left.
"""

from experiments.compare.command import main

__all__ = ["main"]
