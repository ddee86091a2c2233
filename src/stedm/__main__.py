"""`python -m stedm`: the command line where the script isn't on the path."""

from stedm.cli import main

main()
