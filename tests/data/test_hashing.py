import numpy as np

from recjax.data.hashing import random_bits, to_uniform


def test_bits_do_not_depend_on_what_they_are_drawn_with():
    example, slot = np.arange(5)[:, None], np.arange(7)[None, :]
    bits = random_bits(3, 1, 0, example, slot)
    assert bits.shape == (5, 7) and bits.dtype == np.uint64
    np.testing.assert_array_equal(random_bits(3, 1, 0, np.array([4]), np.array([6])), bits[4, 6:])


def test_every_argument_matters_and_uniforms_are_uniform():
    example, slot = np.arange(300)[:, None], np.arange(100)[None, :]
    draws = [
        to_uniform(random_bits(seed, epoch, stream, example, slot))
        for seed, epoch, stream in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0)]
    ]
    for draw in draws:
        counts, _ = np.histogram(draw, bins=10, range=(0.0, 1.0))
        # 30,000 draws, 3,000 a bin, standard deviation 52.
        assert np.all(np.abs(counts - 3000) < 5 * 52)
    correlation = np.corrcoef([draw.ravel() for draw in draws])
    assert np.all(np.abs(correlation - np.eye(5)) < 5 / np.sqrt(30_000))
