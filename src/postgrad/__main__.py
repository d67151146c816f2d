"""`python -m postgrad` is `postgrad`."""

from postgrad.cli import main

main()
