"""One file a benchmark: ``load(root, profile) -> Task``.  Their list is ``eval.task.TASKS``."""
