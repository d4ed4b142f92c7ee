"""Losses: rules on the scores of a query's own items and of the candidates that all queries share.

An example's own items are its labels (label weight y > 0) and negatives of its own (y = 0). Every
loss takes `weight_B` (0 for padding) and returns (weighted sum, loss of each example). Only the
sum is differentiable; the caller divides it by the weights' sum over all replicas.

A rule gets the scores s of one tile and the logs of the items' weights e^(-log_q); below, own
labels are p, and c runs over everything else that is scored: own negatives, and candidates that
are no item of the example's own. v_c is the weight of c divided by the sum of those weights. With
log_q the log of the expected number of times that c was drawn, sum_c v_c f(s_c) estimates the mean
of f over the items that are no label; without, it is the mean over the candidates. A mean over
nothing is 0, and so is the log of one.
"""

import difflib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recjax.candidates import Candidates
from recjax.errors import ConfigError
from recjax.ops.candidate_loss import Rule, candidate_loss
from recjax.ops.softmax import softmax_loss


class Loss(NamedTuple):
    """A loss against the full corpus and against candidates."""

    full: Callable[..., tuple[Array, Array]]
    sampled: Callable[..., tuple[Array, Array]]


def make_loss(
    name: str,
    *,
    negative_weight: float = 1.0,
    margin: float = 0.0,
    positive_scale: float = 1.0,
    label_smoothing: float = 0.0,
) -> Loss:
    """Builds a loss by its name; what it is, the function of that name says.

    `sampled` is `sampled_loss` of the rule. `full` takes the arguments of `full_loss`, and is that
    but for 'softmax', where it is `recjax.ops.softmax.softmax_loss`, which can be split over an
    axis. A setting that the loss does not read must stand at its default.

    Args:
        name: 'softmax', 'bpr', 'bce', 'ccl' or 'bsl'.
        negative_weight: of 'bce' and 'ccl', weight of the negatives' mean.
        margin: of 'ccl', the score below which a negative loses nothing.
        positive_scale: of 'bsl', temperature of the labels / temperature of the negatives.
        label_smoothing: of 'softmax', share of the target that is uniform over the corpus.

    Raises:
        ConfigError: an unknown name, or a setting that cannot be or that the loss does not read.
    """
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no loss {name!r}: there are {', '.join(LOSSES)}{hint}")
    settings = {
        "negative_weight": (negative_weight, 1.0, negative_weight >= 0, "at least 0"),
        "margin": (margin, 0.0, abs(margin) <= 1, "a cosine, from -1 to 1"),
        "positive_scale": (positive_scale, 1.0, positive_scale > 0, "more than 0"),
        "label_smoothing": (label_smoothing, 0.0, 0 <= label_smoothing < 1, "from 0 to below 1"),
    }
    read, make = LOSSES[name]
    for key, (value, default, is_legal, legal) in settings.items():
        if not is_legal:
            raise ConfigError(f"config.loss.{key}={value}: it must be {legal}")
        if value != default and key not in read:
            readers = " and ".join(other for other in LOSSES if key in LOSSES[other].settings)
            raise ConfigError(
                f"config.loss.{key}={value} is for {readers}; with loss.name={name} it must be "
                f"{default}"
            )
    chosen = {key: settings[key][0] for key in read}
    return make(**chosen)


def softmax(
    score_TxP: Array,
    log_w_TxP: Array,
    y_TxP: Array,
    score_TxC: Array,
    log_w_TxC: Array,
    *,
    label_smoothing: float = 0.0,
) -> Array:
    """Sampled softmax cross-entropy.

    With the labels' weights 1 and w_c = e^(-log_q_c), the partition function is estimated once for
    all labels of a query:

        Z = sum_p e^(s_p) + sum_c w_c e^(s_c)          loss = log Z - sum_p y_p s_p

    Every item is counted once in expectation, so E[Z] is the sum over the whole corpus, and as the
    candidates grow in number the gradient becomes that of the exact softmax. Bengio & Senecal
    2008, "Adaptive importance sampling to accelerate training of a neural probabilistic language
    model"; Jean et al. 2015, "On using very large target vocabulary for neural machine
    translation" (arXiv:1412.2007); for candidates from the batch, Yi et al., RecSys 2019,
    "Sampling-bias-corrected neural modeling for large corpus item recommendations".

    With label smoothing a (Szegedy et al., CVPR 2016, arXiv:1512.00567, section 7) the target is
    (1 - a) y + a / N, and the mean of all N scores is estimated by what is scored, each item with
    its weight over the sum of the weights, so that a shift of all scores costs nothing:

        loss = log Z - (1 - a) sum_p y_p s_p - a (sum_p s_p + sum_c w_c s_c) / (P + sum_c w_c)

    Labels of which log_w is not 0 stand with s_p + log_w_p for s_p in Z and beside y_p: the common
    variant that corrects the positive too, which is biased (arXiv:2507.09331).
    """
    is_label_TxP = y_TxP > 0
    logits_TxP = score_TxP + log_w_TxP
    target_TxP = jnp.where(is_label_TxP, y_TxP * logits_TxP, 0.0)
    loss_T = _log_sum_exp(logits_TxP, score_TxC + log_w_TxC)
    loss_T -= (1 - label_smoothing) * jnp.sum(target_TxP, axis=1)
    if label_smoothing:
        share_TxP, share_TxC = _shares(jnp.where(is_label_TxP, 0.0, log_w_TxP), log_w_TxC)
        mean_T = jnp.sum(share_TxP * score_TxP, axis=1) + jnp.sum(share_TxC * score_TxC, axis=1)
        loss_T -= label_smoothing * mean_T
    return loss_T


def bpr(
    score_TxP: Array, log_w_TxP: Array, y_TxP: Array, score_TxC: Array, log_w_TxC: Array
) -> Array:
    """Bayesian personalised ranking: sum_p y_p sum_c v_c softplus(s_c - s_p).

    Rendle et al., UAI 2009, "BPR: Bayesian personalized ranking from implicit feedback"
    (arXiv:1205.2618), BPR-Opt: -log sigma(s_p - s_c), its regularisation left to the optimizer.
    Labels are taken one after another, so no more than T x C differences are held.
    """
    v_TxP, v_TxC = _negative_shares(log_w_TxP, y_TxP, log_w_TxC)

    def one_label(total_T: Array, label: tuple[Array, Array]) -> tuple[Array, None]:
        score_T, y_T = label
        own_T = jnp.sum(v_TxP * _softplus(score_TxP - score_T[:, None]), axis=1)
        shared_T = jnp.sum(v_TxC * _softplus(score_TxC - score_T[:, None]), axis=1)
        return total_T + y_T * (own_T + shared_T), None

    zero_T = jnp.zeros_like(score_TxP[:, 0])
    if score_TxP.shape[1] == 1:
        return one_label(zero_T, (score_TxP[:, 0], y_TxP[:, 0]))[0]
    one_label = jax.checkpoint(one_label, prevent_cse=False)
    return jax.lax.scan(one_label, zero_T, (score_TxP.T, y_TxP.T))[0]


def bce(
    score_TxP: Array,
    log_w_TxP: Array,
    y_TxP: Array,
    score_TxC: Array,
    log_w_TxC: Array,
    *,
    negative_weight: float = 1.0,
) -> Array:
    """Binary cross-entropy with logits.

        loss = sum_p y_p softplus(-s_p) + negative_weight sum_c v_c softplus(s_c)

    He et al., WWW 2017, "Neural collaborative filtering" (arXiv:1708.05031), equation 7, as a mean
    over the negatives in place of a sum; there negative_weight is the negatives per label.
    """
    v_TxP, v_TxC = _negative_shares(log_w_TxP, y_TxP, log_w_TxC)
    positive_T = jnp.sum(y_TxP * _softplus(-score_TxP), axis=1)
    own_T = jnp.sum(v_TxP * _softplus(score_TxP), axis=1)
    return positive_T + negative_weight * (own_T + jnp.sum(v_TxC * _softplus(score_TxC), axis=1))


def ccl(
    score_TxP: Array,
    log_w_TxP: Array,
    y_TxP: Array,
    score_TxC: Array,
    log_w_TxC: Array,
    *,
    negative_weight: float = 1.0,
    margin: float = 0.0,
) -> Array:
    """Cosine-contrastive loss, for scores that are cosines (unit embeddings, temperature 1).

        loss = sum_p y_p (1 - s_p) + negative_weight sum_c v_c max(0, s_c - margin)

    Mao et al., CIKM 2021, "SimpleX: a simple and strong baseline for collaborative filtering"
    (arXiv:2109.12613), equation 1.
    """
    v_TxP, v_TxC = _negative_shares(log_w_TxP, y_TxP, log_w_TxC)
    positive_T = jnp.sum(y_TxP * (1 - score_TxP), axis=1)
    own_T = jnp.sum(v_TxP * jax.nn.relu(score_TxP - margin), axis=1)
    shared_T = jnp.sum(v_TxC * jax.nn.relu(score_TxC - margin), axis=1)
    return positive_T + negative_weight * (own_T + shared_T)


def bsl(
    score_TxP: Array,
    log_w_TxP: Array,
    y_TxP: Array,
    score_TxC: Array,
    log_w_TxC: Array,
    *,
    positive_scale: float = 1.0,
) -> Array:
    """Bilateral softmax loss: the same log-mean-exp over labels as over negatives.

        loss = log sum_c v_c e^(s_c) - r log sum_p y_p e^(s_p / r)

    Wu et al., ICDE 2024, "BSL: understanding and improving softmax loss for recommendation"
    (arXiv:2312.12882), divided by the negatives' temperature t: s = f / t, and r = positive_scale
    is the labels' temperature / t. y counts as divided by its sum.
    """
    is_label_TxP = y_TxP > 0
    log_y_TxP = jnp.where(is_label_TxP, jnp.log(jnp.where(is_label_TxP, y_TxP, 1.0)), -jnp.inf)
    log_w_TxP = jnp.where(is_label_TxP, -jnp.inf, log_w_TxP)
    negative_T = _log_sum_exp(score_TxP + log_w_TxP, score_TxC + log_w_TxC)
    negative_T -= _log_sum_exp(log_w_TxP, log_w_TxC)
    positive_T = _log_sum_exp(score_TxP / positive_scale + log_y_TxP) - _log_sum_exp(log_y_TxP)
    return negative_T - positive_scale * positive_T


def sampled_loss(
    rule: Rule,
    query_BxD: Float[Array, "B D"],
    own_BxPxD: Float[Array, "B P D"],
    candidate_CxD: Float[Array, "C D"],
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    candidates: Candidates,
    weight_B: Float[Array, "B"],
    *,
    scale: float | Float[Array, ""] = 1.0,
    own_bias_BxP: Float[Array, "B P"] | None = None,
    candidate_bias_C: Float[Array, "C"] | None = None,
    correct: bool = True,
    own_log_q_BxP: Float[Array, "B P"] | None = None,
    tile: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """A loss against an example's own items and candidates: (weighted sum, loss of each example).

    Own items are always scored. A candidate that is an own item of the query (an accidental hit)
    is left out, so that every item is counted once. The sum is differentiable in the embeddings,
    biases and scale; see `recjax.ops.candidate_loss.candidate_loss`.

    Args:
        rule: of the loss.
        query_BxD: query embeddings.
        own_BxPxD: embeddings of the own items; of no effect where they are padding.
        candidate_CxD: embeddings of the candidates, shared by all queries; there may be none.
        label_BxP: the own items of each example, distinct; -1 for padding.
        label_weight_BxP: the labels' weights, 1 in sum where the example counts; 0 for negatives.
        candidates: ids and log_q of the candidates; +inf is no candidate.
        weight_B: weight of each example; 0 for padding.
        scale: 1 / temperature.
        own_bias_BxP: added to the scores of the own items.
        candidate_bias_C: added to the scores of the candidates.
        correct: False drops the candidates' log_q, and with it the unbiasedness: frequently drawn
            items are then pushed down in proportion to how often they are drawn.
        own_log_q_BxP: 0 where not given. For negatives, -log of their weight. For labels, what
            'softmax' subtracts from their scores, which is biased; the other losses have no use
            for it.
        tile: examples whose scores are held at once, to be set in tests only; None chooses.
    """
    log_q_C = candidates.log_q_C
    return candidate_loss(
        rule,
        query_BxD,
        own_BxPxD,
        candidate_CxD,
        label_BxP,
        None if own_log_q_BxP is None else -own_log_q_BxP,
        label_weight_BxP,
        candidates.ids_C,
        -log_q_C if correct else jnp.where(jnp.isposinf(log_q_C), -jnp.inf, 0.0),
        weight_B,
        scale=scale,
        own_bias_BxP=own_bias_BxP,
        candidate_bias_C=candidate_bias_C,
        tile=tile,
    )


def full_loss(
    rule: Rule,
    query_BxD: Float[Array, "B D"],
    item_NxD: Float[Array, "N D"],
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    weight_B: Float[Array, "B"],
    *,
    bias_N: Float[Array, "N"] | None = None,
    mask_N: Bool[Array, "N"] | None = None,
    log_prior_N: Float[Array, "N"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
    offset: int | Int[Array, ""] = 0,
    axis: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """A loss with every item as a candidate: (weighted sum, loss of each example).

    The arguments are those of `recjax.ops.softmax.softmax_loss`, on one shard: `offset` is what
    label ids begin at.

    Raises:
        ValueError: an axis is given.
    """
    if axis is not None:
        raise ValueError(
            f"only softmax has a full loss over a corpus split over an axis ({axis!r}): "
            "use one shard or sampled candidates"
        )
    if log_prior_N is not None:
        bias_N = log_prior_N if bias_N is None else bias_N + log_prior_N
    own_BxP = jnp.where(label_BxP >= 0, label_BxP - offset, -1)
    row_BxP = jnp.maximum(own_BxP, 0)
    return candidate_loss(
        rule,
        query_BxD,
        item_NxD[row_BxP],
        item_NxD,
        own_BxP,
        None,
        label_weight_BxP,
        None,
        jnp.zeros(len(item_NxD)) if mask_N is None else jnp.where(mask_N, 0.0, -jnp.inf),
        weight_B,
        scale=scale,
        own_bias_BxP=None if bias_N is None else bias_N[row_BxP],
        candidate_bias_C=bias_N,
    )


def _make_softmax(*, label_smoothing: float) -> Loss:
    rule = functools.partial(softmax, label_smoothing=label_smoothing)
    full = functools.partial(softmax_loss, label_smoothing=label_smoothing)
    return Loss(full, functools.partial(sampled_loss, rule))


def _make_from_rule(rule: Callable[..., Array], **settings: float) -> Loss:
    rule = functools.partial(rule, **settings)
    return Loss(functools.partial(full_loss, rule), functools.partial(sampled_loss, rule))


def _max(*parts_TxK: Array) -> Array:
    """The greatest of each row, 0 where all are -inf; a constant to differentiation."""
    max_T = functools.reduce(jnp.maximum, [jnp.max(part, axis=1) for part in parts_TxK])
    return jax.lax.stop_gradient(jnp.where(jnp.isneginf(max_T), 0.0, max_T))


def _log_sum_exp(*parts_TxK: Array) -> Array:
    """log sum e^x of each row; 0, with gradient 0, where all are -inf."""
    max_T = _max(*parts_TxK)
    sum_T = sum(jnp.sum(jnp.exp(part - max_T[:, None]), axis=1) for part in parts_TxK)
    return max_T + jnp.log(jnp.where(sum_T > 0, sum_T, 1.0))


def _negative_shares(log_w_TxP: Array, y_TxP: Array, log_w_TxC: Array) -> tuple[Array, Array]:
    """v of the own items (0 for labels) and of the candidates: 1 in sum, or 0 where all are 0."""
    return _shares(jnp.where(y_TxP > 0, -jnp.inf, log_w_TxP), log_w_TxC)


def _shares(log_w_TxP: Array, log_w_TxC: Array) -> tuple[Array, Array]:
    """The weights over their sum."""
    max_T = _max(log_w_TxP, log_w_TxC)
    w_TxP, w_TxC = jnp.exp(log_w_TxP - max_T[:, None]), jnp.exp(log_w_TxC - max_T[:, None])
    sum_T = jnp.sum(w_TxP, axis=1) + jnp.sum(w_TxC, axis=1)
    share_T = 1 / jnp.maximum(sum_T, 1.0)  # the greatest weight is 1
    return w_TxP * share_T[:, None], w_TxC * share_T[:, None]


def _softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


class _Entry(NamedTuple):
    settings: tuple[str, ...]  # what it reads
    make: Callable[..., Loss]


LOSSES: dict[str, _Entry] = {
    "softmax": _Entry(("label_smoothing",), _make_softmax),
    "bpr": _Entry((), functools.partial(_make_from_rule, bpr)),
    "bce": _Entry(("negative_weight",), functools.partial(_make_from_rule, bce)),
    "ccl": _Entry(("negative_weight", "margin"), functools.partial(_make_from_rule, ccl)),
    "bsl": _Entry(("positive_scale",), functools.partial(_make_from_rule, bsl)),
}
