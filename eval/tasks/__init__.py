"""One file a benchmark: ``load(root) -> Task``.  The list of them is ``eval.task.TASKS``."""
