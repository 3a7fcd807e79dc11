"""The command line: `aigc-engine demo | models | sample | train | evaluate | bench | info`."""

from aigc_engine.cli.app import main

__all__ = ["main"]
