"""How well adapters do: metrics, and the comparison with the base model, other adapters and trained LoRAs."""
