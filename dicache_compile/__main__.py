"""`python -m dicache_compile` is the command `dicache`."""

from .cli import main

main()
