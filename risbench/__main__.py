"""`python -m risbench`, which torchrun starts."""

from risbench.cli import main

main()
