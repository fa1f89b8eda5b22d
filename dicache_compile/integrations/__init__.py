"""What other libraries tell us while they run. None of them is imported here."""

from . import diffusers, modular


def listen() -> None:
    """Begins to listen to all of them; does nothing the second time."""
    diffusers.install()
    modular.install()
