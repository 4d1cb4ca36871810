"""Everything that touches a file format: sources, base weights in, adapters out, checkpoints, published models."""
