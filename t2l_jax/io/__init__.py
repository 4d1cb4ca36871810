"""Everything that touches a file format: locations, base weights in, adapters out, checkpoints, published models."""
