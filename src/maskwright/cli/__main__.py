"""`python -m maskwright.cli`."""

from maskwright.cli import main

main()
