"""``python -m skminilm``: the command ``skminilm``."""

from .cli import main

main()
