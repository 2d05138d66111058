"""`python -m tersor` is the `tersor` command."""

from tersor.cli import main

main()
