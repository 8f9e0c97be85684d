"""The command line: commands, their flags, and how they speak and end.

`fairjax --tyro-write-completion bash FILE` writes a file that lets TAB complete flags and names.
"""

from fairjax.cli.commands import main

__all__ = ["main"]
