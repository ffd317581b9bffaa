"""The verbs: one file a group of them. Nothing heavy is imported before a verb needs it."""

from sweep.cli.app import app, main

__all__ = ["app", "main"]
