"""`python -m loop.cli` is `skillloop`."""

from loop.cli.main import main

main()
