"""W1 with Keras-RS on Keras 3 and JAX, by `fit` on a generator of batches.

    python -m experiments.benchmarks.peers.keras_rs_train

Keras-RS has the logQ layer; the loss over the batch is written out, and summed as TFRS's is.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_rs
import numpy as np

from experiments.benchmarks import harness, workload


class Tower(keras.Model):
    """An id, categories, a padded list (0 is padding) and numbers, through hidden layers."""

    def __init__(self, ids: int, categories: tuple, listed: int):
        super().__init__()
        dim = workload.FEATURE_DIM
        self.id = keras.layers.Embedding(ids, dim)
        self.categories = [keras.layers.Embedding(n, dim) for n in categories]
        self.listed = keras.layers.Embedding(listed + 1, dim, mask_zero=True)
        self.pool = keras.layers.GlobalAveragePooling1D()
        hidden = [keras.layers.Dense(width, activation="relu") for width in workload.HIDDEN]
        self.dense = keras.Sequential([*hidden, keras.layers.Dense(workload.DIM)])

    def call(self, inputs):
        """Embeds a batch."""
        listed = inputs["listed"]
        parts = [self.id(inputs["id"])]
        parts.append(self.pool(self.listed(listed), mask=self.listed.compute_mask(listed)))
        parts += [table(inputs["categories"][:, i]) for i, table in enumerate(self.categories)]
        return self.dense(keras.ops.concatenate([*parts, inputs["numbers"]], axis=1))


class TwoTower(keras.Model):
    """Two towers and in-batch softmax with logQ."""

    def __init__(self, arrays: workload.Arrays):
        super().__init__()
        users, items = len(arrays["user_numbers"]), len(arrays["item_numbers"])
        self.query = Tower(users, workload.USER_CATEGORIES, items)
        self.item = Tower(items, workload.ITEM_CATEGORIES, workload.TAGS)
        self.correct = keras_rs.layers.SamplingProbabilityCorrection()
        self.cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum")

    def call(self, inputs):
        """Both sides' embeddings."""
        return self.query(inputs["query"]), self.item(inputs["item"])

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        """The sum over the batch."""
        query, item = y_pred
        scores = keras.ops.matmul(query, keras.ops.transpose(item))
        scores = self.correct(scores, x["probability"])
        return self.cross_entropy(keras.ops.eye(keras.ops.shape(scores)[0]), scores)


class Watch(keras.callbacks.Callback):
    """Times the steps of a fit, and ends it."""

    def __init__(self, flags, batch_size: int):
        super().__init__()
        self._flags, self._batch_size = flags, batch_size
        self._total = 0.0

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._watch = harness.Stopwatch(self._flags, self._batch_size)

    def on_train_batch_end(self, batch, logs=None):
        """Notes a step; Keras logs the mean of the epoch so far."""
        total = float(logs["loss"]) / self._batch_size * (batch + 1)
        loss, self._total = total - self._total, total
        if self._watch.took(loss):
            self.model.stop_training = True

    def result(self):
        """See Stopwatch."""
        return self._watch.result()


def main() -> None:
    """Times training and prints the result."""
    flags = harness.make_parser(__doc__).parse_args()
    keras.utils.set_random_seed(0)
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    batch_size = 512 if flags.smoke else 4096

    def side(name: str, listed: str, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "id": ids,
            "categories": arrays[f"{name}_categories"][ids],
            "numbers": arrays[f"{name}_numbers"][ids],
            "listed": arrays[f"{name}_{listed}"][ids] + 1,
        }

    def batches():
        for rows in workload.orders(len(arrays["user"]), batch_size):
            item = arrays["item"][rows]
            inputs = {
                "query": side("user", "watched", arrays["user"][rows]),
                "item": side("item", "tags", item),
                "probability": np.exp(arrays["item_log_p"][item]),
            }
            yield inputs, np.zeros(batch_size, np.float32)

    first = next(workload.orders(len(arrays["user"]), batch_size))
    expected = workload.in_batch_loss(arrays["item_log_p"][arrays["item"][first]])
    model = TwoTower(arrays)
    model.compile(optimizer=keras.optimizers.Adagrad(0.05))
    watch = Watch(flags, batch_size)
    model.fit(batches(), steps_per_epoch=10**6, epochs=1, callbacks=[watch], verbose=0)
    packages = ("keras", "keras-rs", "jax", "numpy")
    harness.report(packages, **watch.result(), expected_loss=expected)


if __name__ == "__main__":
    main()
