"""Get pictures, weights and question files ready on disk: `python -m data_prep VERB --help`."""

# Verb -> what it does. Each verb is the module of its name with a main(argv).
VERBS = {
    "fetch": "download the data sets of the three stages and the benchmarks",
    "check": "look at every row and every picture of a data file, repair, report, exclude",
    "normalise": "turn rows of other formats into LLaVA rows that train, with their lengths",
    "quickstart": "fetch small real weights and pictures, write training and test questions",
}
