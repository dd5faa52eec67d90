"""Measurements, always of one thing against another in the same run.

`python -m benchmarks NAME --help` lists the options of a benchmark.
"""

# Name -> what it measures. Each is the module of its name with a main(argv).
VERBS = {
    "data": "the data path: decoding, padding against packing, memory of a loader's worker",
    "evaluation": "answers to questions about pictures, LLaVA's loop against this harness",
    "features": "a step of the projector, with the image tower and with its cached features",
    "finite": "what the check for losses that are not finite costs a step",
    "moe": "the MoE layer, a loop over experts, transformers' experts, the matrix products alone",
    "plan": "memory that llava-compete plan foresees, and the peaks of trainings",
    "scaling": "cost of a step as it grows: a model, bytes of ZeRO's collectives, layer times",
    "step": "a whole training step, packed and fused against padded and looped",
    "startup": "help, imports and a training up to its first step, against the import of torch",
}
