"""Get pictures, weights and question files ready on disk: `python -m data_prep VERB --help`."""
