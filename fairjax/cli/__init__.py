"""The command line: commands, their flags, their output and their exit codes.

`fairjax --tyro-write-completion bash FILE` writes a file for the shell; with it, TAB
completes flags and names.
"""

from fairjax.cli.commands import main

__all__ = ["main"]
