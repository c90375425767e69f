"""Scaling: a script run at several scales, and what runs at several scales say.

The way of the data: ``plan`` (what is to be run), ``study`` (the file that keeps how far it is),
``runs`` (runs it), ``measure`` (a run's figures), ``fit`` (laws of scaling), ``table`` (answers),
``words`` (terminal and Markdown), ``chart`` and ``page`` (HTML).
"""
