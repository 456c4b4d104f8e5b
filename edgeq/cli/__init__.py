"""The command line; `entry.main` is the `edgeq` program."""

from edgeq.cli.entry import main as main
