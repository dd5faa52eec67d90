"""The pieces of ``python -m data_prep normalise``."""
