"""Experiments of the project itself: each verb runs one and leaves numbers, a table and a figure.

`python -m experiments VERB --help` lists the options of a verb.
"""

# Verb -> what it does. Each verb is the module of its name with a main(argv).
VERBS = {
    "agreement": "does the router learn the competition, and what makes it learn",
    "compare": "routers trained alike from one checkpoint: loss, scores, cost, routing",
    "sample_efficiency": "competition against softmax gating: rates of maximum likelihood",
}
