"""The command line of a package whose verbs are modules of it: ``python -m PACKAGE VERB ...``."""

import argparse
import importlib
from collections.abc import Mapping, Sequence


def run_verb(package: str, description: str, verbs: Mapping[str, str], argv: Sequence[str]) -> None:
    """``main(options)`` of ``PACKAGE.VERB``, where ``argv`` is VERB and its options.

    ``verbs`` says what each does, for ``--help``.
    """
    width = max(map(len, verbs))
    listing = "\n".join(f"  {verb:{width}}  {what}" for verb, what in verbs.items())
    parser = argparse.ArgumentParser(
        prog=f"python -m {package}",
        description=description,
        epilog=f"verbs:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=verbs, metavar="VERB")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args(argv)
    importlib.import_module(f"{package}.{args.verb}").main(args.options)
