"""`python -m fxprune`: the command line."""

from fxprune.cli import main

main()
