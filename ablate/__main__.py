"""`python -m ablate`: the command line."""

from ablate.cli import main

main()
