"""Programs of several verbs: a table says what each verb does, a module of its name does it.

Only the module of the verb that is asked for is imported: the table is what ``--help`` needs.
"""

import argparse
import importlib
import keyword
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Call(NamedTuple):
    """What a command line asks for."""

    verb: str
    main: Callable[[Sequence[str]], Any]  # of the verb's module
    words: list[str]  # what stands behind the verb


@dataclass(frozen=True)
class Program:
    """A command with verbs."""

    name: str  # how it is called, such as "python -m data_prep"
    description: str
    package: str  # where each verb is a module with a main(argv)
    verbs: Mapping[str, str]  # what each does, in a line

    def read(self, argv: Sequence[str] | None = None) -> Call:
        """The verb that ``argv``, or the process's own words, begin with; no other is imported.

        SystemExit with the table where they begin with none.
        """
        argv = sys.argv[1:] if argv is None else argv
        width = max(map(len, self.verbs))
        listing = "\n".join(f"  {verb:{width}}  {does}" for verb, does in self.verbs.items())
        parser = argparse.ArgumentParser(
            prog=self.name,
            usage="%(prog)s VERB ...",
            description=self.description,
            epilog=f"verbs (VERB --help lists the options of one):\n{listing}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("verb", choices=self.verbs, metavar="VERB", help="one of the below")
        verb = parser.parse_args(argv[:1]).verb
        module = importlib.import_module(f"{self.package}.{module_name(verb)}")
        return Call(verb, module.main, list(argv[1:]))


def module_name(verb: str) -> str:
    """``cache-features`` is cache_features; ``import``, a word of Python's, is import_."""
    name = verb.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name
