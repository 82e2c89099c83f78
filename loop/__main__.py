"""`python -m loop` is `skillloop`."""

from loop.cli.main import main

main()
