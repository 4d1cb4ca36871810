"""`t2l`: thin layers over the library. Modules that are slow to import are imported by the command that needs them."""

from t2l_jax.cli.entry import main

__all__ = ["main"]
