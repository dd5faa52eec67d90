"""Scoring rules and statistics: pure functions of texts and numbers; nothing here imports torch.

A rule is a module with ``score(text, sample) -> Score`` and ``aggregate(rows) -> {name: Metric}``.
Where tools disagree it has ``RULES`` as well, from which ``rules.pick`` takes one by name. Part of
the rows, such as one group, gives no metric that the whole does not give.
"""
