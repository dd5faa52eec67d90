"""Benchmarks: ask a checkpoint, keep its answers, score them.

    python -m eval run --checkpoint DIR --tasks stamps_yesno,stamps_choice --data_root DIR --out RUN
    python -m eval score RUN
    python -m eval report RUN...
    python -m eval submit RUN
    python -m eval report RUN --training DIR --output OUTDIR

``verbs`` has a module each; ``task`` says what a benchmark is and ``tasks/`` holds one file for
each; ``plan`` turns a task into requests, ``batches`` says which go together, ``predict`` puts them
to a ``model``, run as it was saved or as ``inference`` and ``sampling`` say, and appends the
answers to the run directory (``store``); the model sees each of ``pictures`` once, and of
``options`` it may give losses instead of words. Of several processes (``ranks``) each asks a share.
``score`` reads those back without a model, and ``report`` draws the table.
``training_report`` writes it into a ``document`` together with ``charts`` of a ``training_log``,
the runs side by side (``comparison``) and pictures with their ``answers``; ``rows`` has every
metric for a spreadsheet and for ``wandb_tables``. ``submissions`` writes the files for servers and
judges.
"""
