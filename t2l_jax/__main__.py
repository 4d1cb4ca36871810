"""`python -m t2l_jax` is `t2l`."""

from t2l_jax.cli import main

if __name__ == "__main__":
    main()
