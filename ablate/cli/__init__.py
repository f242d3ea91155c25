"""The command line. Every module here is light: heavy imports happen inside the commands."""

from ablate.cli.entry import main

__all__ = ["main"]
