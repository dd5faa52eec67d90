"""From files to samples: which layout of a benchmark is there, its rows, pictures and prompts.

layouts    which of a benchmark's layouts lies below the data root; absent files are named
questions  JSON lines that hold whole prompts (the quickstart, a user's own), and JSON lines as such
tables     rows of parquet, arrow and TSV files, a few at a time
pictures   a table's pictures as files, each once, by content
pictured   rows of tables with pictures; those kept before are not read again
memory     what was found out about files, kept below the data root
prompts    the forms in which a question is put, and the profiles that disagree on them
"""

from eval.readers.layouts import find
from eval.readers.questions import read_jsonl, read_questions

__all__ = ["find", "read_jsonl", "read_questions"]
