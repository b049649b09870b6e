"""The command line. The only package that may import every other."""

from fabric.cli.entry import main

__all__ = ["main"]
