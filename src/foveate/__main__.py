"""``python -m foveate`` is the ``foveate`` command; ``accelerate launch -m foveate`` runs it in several processes."""

from .cli import main

if __name__ == "__main__":
    main()
