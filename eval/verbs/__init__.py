"""The verbs of ``python -m eval``, a module each: ``main(argv)`` gives the exit status."""

# Verb -> what it does.
VERBS = {
    "run": "ask a checkpoint, then score",
    "score": "score stored replies, no model",
    "submit": "write files for servers, judges",
    "report": "print the tables of runs",
}
