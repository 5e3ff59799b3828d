"""`python -m maskwright`, the same as the command `maskwright`."""

from maskwright.cli import main

main()
