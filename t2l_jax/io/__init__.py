"""Everything that touches a file format: model sources, base weights in, adapters out, checkpoints, published models."""
