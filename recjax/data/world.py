"""The truth of a planted world: its p(i | x) in closed form, and draws from it."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Int32

from recjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class World:
    """The truth behind a synthetic data set.

    A user u with past items h (in order) has the interest

        z = sqrt(user_features) F(u) + sqrt(history) H(h) + sqrt(taste) T(u)

    where F is a function of the user's age, country and device, H the direction of the mean
    latent of the last `window` items (zero where there are none), T a latent that no column shows,
    and taste = 1 - user_features - history. F, H and T have length 1 and the item latents v unit
    covariance, so each term alone gives <z, v_i> a variance over the items equal to its share (and
    they add up to more than 1 where they agree, as H comes to resemble F). Then

        p(i | u, h) = (1 - unobserved) softmax_i(strength <z, v_i> + log popularity_i)
                      + unobserved popularity_i

    both terms over the items that can be drawn: released, and not in h unless `repeats`.

    Attributes:
      user_latent_UxD: F(u).
      taste_UxD: T(u).
      item_latent_NxD: v_i.
      log_popularity_N: log of the popularity, which sums to 1.
      released_N: bool; false for new items, which only TEST interactions can draw.
      user_features: share of the interest explained by user features.
      history: share explained by the last items.
      item_features: share of an item's latent that is a function of its categories.
      unobserved: share of interactions explained by nothing observable: drawn by popularity alone.
      strength: standard deviation over the items of an interest's effect on log p.
      window: how many of the last items matter.
      repeats: whether a user can meet an item twice.
    """

    user_latent_UxD: np.ndarray
    taste_UxD: np.ndarray
    item_latent_NxD: np.ndarray
    log_popularity_N: np.ndarray
    released_N: np.ndarray
    user_features: float
    history: float
    item_features: float
    unobserved: float
    strength: float
    window: int
    repeats: bool

    def interest(
        self, user_B: Int[np.ndarray, "B"], history_BxL: Int[np.ndarray, "B L"]
    ) -> Float[np.ndarray, "B D"]:
        """The interest z of each user with the given past items (-1 = none, latest last)."""
        recent_BxW = history_BxL[:, max(0, history_BxL.shape[1] - self.window) :]
        latent_BxWxD = self.item_latent_NxD[recent_BxW] * (recent_BxW >= 0)[:, :, None]
        taste = max(0.0, 1.0 - self.user_features - self.history)
        return (
            np.sqrt(self.user_features) * self.user_latent_UxD[user_B]
            + np.sqrt(self.history) * unit(latent_BxWxD.sum(1))
            + np.sqrt(taste) * self.taste_UxD[user_B]
        )

    def log_prob(
        self,
        user_B: Int[np.ndarray, "B"],
        history_BxL: Int[np.ndarray, "B L"],
        *,
        released: str = "all",
    ) -> Float[np.ndarray, "B N"]:
        """log p(i | user, history) of every item, in float64; -inf where it cannot be drawn.

        Args:
          user_B: positions in the user table.
          history_BxL: all earlier items of the user, latest last, padded with -1 on the left.
          released: `all` items, or those of `train` alone.

        Raises:
          ConfigError: if `released` is another word.
        """
        z_BxD = self.interest(user_B, history_BxL)
        popular_BxN = np.tile(self.log_popularity_N, (len(user_B), 1))
        if _check_released(released) == "train":
            popular_BxN[:, ~self.released_N] = -np.inf
        if not self.repeats:
            rows, places = np.nonzero(history_BxL >= 0)
            popular_BxN[rows, history_BxL[rows, places]] = -np.inf
        liked_BxN = self.strength * z_BxD @ self.item_latent_NxD.T + popular_BxN
        with np.errstate(divide="ignore"):
            return np.logaddexp(
                np.log1p(-self.unobserved) + _log_softmax(liked_BxN),
                np.log(self.unobserved) + _log_softmax(popular_BxN),
            )

    def sample(
        self,
        user_B: Int[np.ndarray, "B"],
        history_BxL: Int[np.ndarray, "B L"],
        rng: np.random.Generator,
        *,
        released: str = "all",
    ) -> Int[np.ndarray, "B"]:
        """One item for each row, drawn from exp of `log_prob` (same arguments; in float32)."""
        z_BxD = self.interest(user_B, history_BxL)
        z_BxD[rng.random(len(user_B)) < self.unobserved] = 0.0
        z_BxD = (self.strength * z_BxD).astype(np.float32)
        uniform_B = rng.random(len(user_B), np.float32)
        item_DxN = self.item_latent_NxD.T.astype(np.float32)
        popular_N = self.log_popularity_N.astype(np.float32)
        if _check_released(released) == "train":
            popular_N[~self.released_N] = -np.inf
        drawn_B = np.empty(len(user_B), np.int32)
        block = max(1, 2**18 // item_DxN.size)  # in the cache, and too small for BLAS's threads
        for start in range(0, len(user_B), block):
            rows = slice(start, start + block)
            weight_BxN = z_BxD[rows] @ item_DxN
            weight_BxN += popular_N
            np.exp(weight_BxN, out=weight_BxN)
            if not self.repeats:
                known_BxL = history_BxL[rows]
                row, place = np.nonzero(known_BxL >= 0)
                weight_BxN[row, known_BxL[row, place]] = 0.0
            np.cumsum(weight_BxN, axis=1, out=weight_BxN)
            # Below the total, so that the drawn item's own weight is above 0.
            total_B = weight_BxN[:, -1]
            point_B = np.minimum(uniform_B[rows] * total_B, np.nextafter(total_B, np.float32(0)))
            drawn_B[rows] = np.count_nonzero(weight_BxN <= point_B[:, None], axis=1)
        return drawn_B

    def show(
        self,
        chosen_B: Int[np.ndarray, "B"],
        history_BxL: Int[np.ndarray, "B L"],
        count: int,
        rng: np.random.Generator,
        *,
        released: str = "all",
    ) -> Int32[np.ndarray, "B E"]:
        """`count` distinct items that were shown beside each chosen one and not chosen.

        One after the other by popularity, whoever the user is, from the items that could have been
        drawn: so telling the chosen item from those shown is to learn `log_prob` less popularity.
        """
        rate_N = np.exp(self.log_popularity_N).astype(np.float32)
        out_N = ~self.released_N & (_check_released(released) == "train")
        shown_BxE = np.empty((len(chosen_B), count), np.int32)
        block = max(1, 2**18 // len(rate_N))
        for start in range(0, len(chosen_B), block):
            rows = slice(start, start + block)
            # The first clocks to ring, each at its item's rate: draws without replacement.
            shape = len(chosen_B[rows]), len(rate_N)
            clock_BxN = rng.standard_exponential(shape, np.float32) / rate_N
            clock_BxN[:, out_N] = np.inf
            clock_BxN[np.arange(len(clock_BxN)), chosen_B[rows]] = np.inf
            if not self.repeats:
                row, place = np.nonzero(history_BxL[rows] >= 0)
                clock_BxN[row, history_BxL[rows][row, place]] = np.inf
            shown_BxE[rows] = np.argpartition(clock_BxN, count - 1, axis=1)[:, :count]
        return shown_BxE


def _check_released(released: str) -> str:
    if released not in ("all", "train"):
        raise ConfigError(f"released is {released!r}; it must be 'all' or 'train'")
    return released


def unit(vector_BxD: np.ndarray) -> np.ndarray:
    """Each row divided by its length; zero where it is zero."""
    norm_B = np.linalg.norm(vector_BxD, axis=1)
    return vector_BxD / np.where(norm_B == 0, 1.0, norm_B)[:, None]


def _log_softmax(logits_BxN: np.ndarray) -> np.ndarray:
    logits_BxN = logits_BxN - logits_BxN.max(1, keepdims=True)
    return logits_BxN - np.log(np.exp(logits_BxN).sum(1, keepdims=True))
