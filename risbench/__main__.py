"""`python -m risbench`, which torchrun starts."""

from risbench.cli.app import main

main()
