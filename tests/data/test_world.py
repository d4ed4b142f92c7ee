"""The planted world: its draws follow its p(i | x), and what it shows its popularity."""

import numpy as np
import pytest

from recjax.data.synthetic import make_synthetic
from recjax.data.world import World
from recjax.errors import ConfigError

SMALL = {"users": 200, "items": 120, "interactions_per_user": 12}
EMPTY_1x0 = np.zeros((1, 0), np.int32)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(**SMALL)


def _row(*history: int) -> np.ndarray:
    return np.array([history], np.int32)


def _chi_square(world: World, user: int, history_1xL: np.ndarray, released: str) -> float:
    """Standard deviations by which 40,000 draws' chi-square exceeds its mean under `log_prob`."""
    draws = 40_000
    user_B = np.full(draws, user)
    drawn_B = world.sample(
        user_B,
        np.repeat(history_1xL, draws, axis=0),
        np.random.default_rng(7),
        released=released,
    )
    seen_N = np.bincount(drawn_B, minlength=len(world.released_N))
    expected_N = draws * np.exp(world.log_prob(user_B[:1], history_1xL, released=released)[0])
    assert np.all(seen_N[expected_N == 0] == 0)
    common_N = expected_N >= 5
    seen = np.append(seen_N[common_N], seen_N[~common_N].sum())
    expected = np.append(expected_N[common_N], expected_N[~common_N].sum() + 1e-9)
    degrees = len(seen) - 1
    return (np.sum((seen - expected) ** 2 / expected) - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("released", ["all", "train"])
@pytest.mark.parametrize("history_1xL", [EMPTY_1x0, _row(-1, -1, 3, 50), _row(*range(20))])
def test_draws_follow_log_prob(data, history_1xL, released):
    assert abs(_chi_square(data.world, 3, history_1xL, released)) < 4


def test_log_prob_is_the_documented_formula(data):
    world = data.world
    history_1xL = _row(-1, 9, 1, 2, 3, 4, 5)
    direction = world.item_latent_NxD[[1, 2, 3, 4, 5]].mean(0)
    z = np.sqrt(0.4) * world.user_latent_UxD[7] + np.sqrt(0.6) * direction / np.linalg.norm(
        direction
    )
    popularity = np.exp(world.log_popularity_N)
    can_draw = ~np.isin(np.arange(120), [9, 1, 2, 3, 4, 5])
    liked = np.exp(2.0 * world.item_latent_NxD @ z) * popularity * can_draw
    popularity = popularity * can_draw
    p = 0.9 * liked / liked.sum() + 0.1 * popularity / popularity.sum()
    np.testing.assert_allclose(np.exp(world.log_prob(np.array([7]), history_1xL)[0]), p, rtol=1e-9)


def test_left_padding_and_items_before_the_window_do_not_matter():
    world = make_synthetic(**SMALL, repeats=True).world
    user = np.array([0])
    expected = world.log_prob(user, _row(1, 2, 3, 4, 5))
    np.testing.assert_array_equal(world.log_prob(user, _row(-1, -1, 1, 2, 3, 4, 5)), expected)
    np.testing.assert_array_equal(world.log_prob(user, _row(99, 98, 1, 2, 3, 4, 5)), expected)
    assert np.any(world.log_prob(user, _row(1, 2, 3, 4, 6)) != expected)


def test_released_must_be_a_known_word(data):
    with pytest.raises(ConfigError, match="'tain'"):
        data.world.log_prob(np.array([0]), EMPTY_1x0, released="tain")


def test_what_is_shown_follows_popularity_without_replacement(data):
    world, draws = data.world, 20_000
    history, chosen, new = [3, 50], 7, np.flatnonzero(~world.released_N)
    shown_BxE = world.show(
        np.full(draws, chosen),
        np.repeat(_row(-1, *history), draws, axis=0),
        2,
        np.random.default_rng(5),
        released="train",
    )
    p_N = np.exp(world.log_popularity_N)
    p_N[[*history, chosen, *new]] = 0.0
    p_N /= p_N.sum()
    # The first by p; the second by p among those left: so each item's chance to be among the two.
    odds_N = p_N / (1 - p_N)
    expected_N = draws * (p_N + p_N * (odds_N.sum() - odds_N))
    count_N = np.bincount(shown_BxE.ravel(), minlength=120)
    assert np.all(count_N[p_N == 0] == 0)
    assert np.all(np.abs(count_N - expected_N) <= 5 * np.sqrt(expected_N))
