"""Sizes that arrays are padded to, so that programs are compiled for few shapes."""


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def bucket(size: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `size`: powers of two and halves between."""
    power = power_of_two(size)
    return 3 * power // 4 if power >= 4 and size <= 3 * power // 4 else power
