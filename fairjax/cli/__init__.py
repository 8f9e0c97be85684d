"""The command line: commands, their flags, and how they speak and end."""

from fairjax.cli.commands import main

__all__ = ["main"]
