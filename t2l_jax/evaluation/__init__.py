"""How well adapters do: metrics, and the comparison with the base model and with misplaced adapters."""
