"""`python -m elegy.cli` is the command `elegy`."""

from elegy.cli.entry import main

main()
