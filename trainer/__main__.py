"""``python -m trainer``, and what torchrun starts."""

from trainer.cli import main

main()
