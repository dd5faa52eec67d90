"""What a training imports, for forks.py, and no cyclic garbage to be sought in it."""

import gc

import deepspeed.runtime.zero.stage3  # noqa: F401

import llava_compete.training.prepare  # noqa: F401

gc.freeze()  # accelerate collects at the end of each training, through a million objects
