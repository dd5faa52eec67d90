"""The parts of `python -m data_prep check`.

findings.py looks at rows and pictures, scan.py does so in several processes, journal.py keeps what
was found, compare.py finds what is there twice, repair.py gives pictures their true extension,
report.py writes the lists and the report.
"""
