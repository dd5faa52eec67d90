"""Run a benchmark.

python -m benchmarks NAME [options]      (NAME --help lists the options of a benchmark)
"""

import sys

from benchmarks import VERBS
from llava_compete.verbs import run_verb

if __name__ == "__main__":
    run_verb("benchmarks", "Measure one thing against another.", VERBS, sys.argv[1:])
