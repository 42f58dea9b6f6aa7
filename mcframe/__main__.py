"""`python -m mcframe`: the `mcframe` command, where its script is not on the path."""

from mcframe.cli.app import main

main()
