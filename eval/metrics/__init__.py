"""Scoring rules and statistics: pure functions of texts and numbers; nothing here imports torch.

A rule is a module with ``score(text, sample) -> Score`` and ``aggregate(rows) -> {name: Metric}``.
"""
