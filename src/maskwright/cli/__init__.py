"""The verbs of the command line, one file for each group of them. Nothing slow is imported before a verb needs it."""

from maskwright.cli.program import app, main

__all__ = ["app", "main"]
