"""Samples and scored rows for the tests of scoring rules."""

from eval.task import Sample, Scored


def sample(*references, options=(), group="", id="1", **meta):
    return Sample(id, "?", references, options=tuple(options), group=group, meta=meta)


def scored(rule, pairs, **more):
    """A row for each pair of a text and a reference, all with the same options, group and meta."""
    return [row(rule, text, sample(reference, **more)) for text, reference in pairs]


def row(rule, text, asked):
    return Scored(asked, rule.score(text, asked))


def value(score):
    """The one value of a score."""
    (number,) = score.values.values()
    return number
