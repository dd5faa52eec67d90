"""A checkpoint as a model of lmms-eval, so that its tasks run on it: ``--model llava_compete``.

``manifest`` is what the entry point ``lmms_eval.models`` names; ``model`` is the class that
lmms-eval makes, and ``ask`` turns its requests into calls of ``eval.predict.Model``. lmms-eval is
an extra, imported by the first two alone and not before lmms-eval itself asks.
"""

from typing import Any


def manifest() -> Any:
    """The ModelManifest under which lmms-eval finds ``eval.lmms.model.LlavaCompeteLmms``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("llava_compete", simple_class_path="eval.lmms.model.LlavaCompeteLmms")
