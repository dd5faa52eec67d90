"""The verbs of ``llava-compete``, a module each.

``main(argv)`` of a module reads its options before it imports what the work needs. A ValueError or
an OSError of it is the user's to mend and ends the program with a line. What it returns, if
anything, is called after that, and an error there is shown where it happened.
"""

# Verb -> what it does.
VERBS = {
    "compose": "language model + image tower -> dense checkpoint directory",
    "upcycle": "dense checkpoint -> checkpoint whose parts are mixtures of experts",
    "import": "checkpoint of LLaVA-1.5 or of CompeteSMoE / LibMoE -> checkpoint directory",
    "count": "parameters and FLOPs of checkpoints or of named models, without their weights",
    "plan": "memory of a training on each GPU, by ZeRO stage and batch size",
    "train": "train a checkpoint by a recipe; train --help lists all keys",
    "merge": "checkpoint with low-rank adapters -> the same model without",
    "export": "training checkpoint, ZeRO-3 shards too -> plain checkpoint directory",
    "routing": "what the routers of a checkpoint do with rows of a LLaVA file",
    "cache-features": "features of a frozen image tower, made once for trainings",
}
