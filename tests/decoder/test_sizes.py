"""What sizes are padded to."""

from t2l_jax.decoder.sizes import bucket, power_of_two


def test_powers_of_two():
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 2, 4, 4, 8, 8, 16, 1024]


def test_buckets():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 97)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 128]
