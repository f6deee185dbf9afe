"""`python -m elegy` is the command `elegy`."""

from elegy.cli.entry import main

main()
