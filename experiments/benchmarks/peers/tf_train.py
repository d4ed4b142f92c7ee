"""W1 (TensorFlow Recommenders), W2 and W3 (Keras) on TensorFlow, by `fit` on a `tf.data` pipeline.

    python -m experiments.benchmarks.peers.tf_train w1 [--jit]

TFRS 0.7.7 needs Keras 2 (TF_USE_LEGACY_KERAS, set here before TensorFlow is imported). Layers and
tables begin as Keras has them. Its retrieval task sums losses, and so does W3; W2 takes the mean.
"""

import math
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from experiments.benchmarks import harness, workload

keras = tf.keras


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
        parts = [self.id(inputs["id"]), self.pool(self.listed(inputs["listed"]))]
        parts += [table(inputs["categories"][:, i]) for i, table in enumerate(self.categories)]
        return self.dense(tf.concat([*parts, inputs["numbers"]], axis=1))


class Data:
    """The workload as tensors, and batches of it."""

    def __init__(self, arrays: workload.Arrays, label: np.ndarray | None = None):
        self.arrays = arrays
        self.label = arrays["item"] if label is None else label
        self._users = self._side("user", "watched")
        self._items = self._side("item", "tags")
        self.probability = tf.constant(np.exp(arrays["item_log_p"]))

    def _side(self, side: str, listed: str) -> dict[str, tf.Tensor]:
        return {
            "categories": tf.constant(self.arrays[f"{side}_categories"]),
            "numbers": tf.constant(self.arrays[f"{side}_numbers"]),
            "listed": tf.constant(self.arrays[f"{side}_{listed}"] + 1),
        }

    def queries(self, user):
        """What the query tower reads."""
        return {"id": user, **{key: tf.gather(x, user) for key, x in self._users.items()}}

    def items(self, item):
        """What the item tower reads."""
        return {"id": item, **{key: tf.gather(x, item) for key, x in self._items.items()}}

    def batches(self, batch_size: int, make) -> tf.data.Dataset:
        """Endless batches of make(user, label)."""
        order = np.random.default_rng(0).permutation(len(self.label))
        rows = tf.data.Dataset.from_tensor_slices((self.arrays["user"][order], self.label[order]))
        batches = rows.batch(batch_size, drop_remainder=True).repeat()
        return batches.map(make, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def query_tower(self) -> Tower:
        """A new tower."""
        sizes = len(self._users["numbers"]), workload.USER_CATEGORIES
        return Tower(*sizes, len(self._items["numbers"]))

    def item_tower(self) -> Tower:
        """A new tower."""
        return Tower(len(self._items["numbers"]), workload.ITEM_CATEGORIES, workload.TAGS)


class Watch(keras.callbacks.Callback):
    """Times the steps of a fit, and ends it."""

    def __init__(self, flags, batch_size: int, scale: float, *, is_mean_so_far: bool = False):
        super().__init__()
        self._flags, self._batch_size = flags, batch_size
        self._scale, self._is_mean_so_far = scale, is_mean_so_far
        self._total = 0.0

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._watch = harness.Stopwatch(self._flags, self._batch_size)

    def on_train_batch_end(self, batch, logs=None):
        """Notes a step; Keras logs a compiled loss as the mean of the epoch so far."""
        loss = float(logs["loss"]) * self._scale
        if self._is_mean_so_far:
            total = loss * (batch + 1)
            loss, self._total = total - self._total, total
        if self._watch.took(loss):
            self.model.stop_training = True

    def result(self):
        """See Stopwatch."""
        return self._watch.result()


def fit(model, batches, watch: Watch):
    """Trains until the watch has seen enough."""
    model.fit(batches, steps_per_epoch=10**6, epochs=1, callbacks=[watch], verbose=0)
    return watch.result()


def w1(flags, arrays):
    """Two towers and TFRS's retrieval task with sampling probabilities."""
    batch_size = 512 if flags.smoke else 4096
    data = Data(arrays)

    class TwoTower(tfrs.Model):
        def __init__(self):
            super().__init__()
            self.query, self.item = data.query_tower(), data.item_tower()
            self.task = tfrs.tasks.Retrieval()

        def compute_loss(self, inputs, training=False):
            query, item = self.query(inputs["query"]), self.item(inputs["item"])
            return self.task(
                query,
                item,
                candidate_sampling_probability=inputs["probability"],
                compute_metrics=False,
            )

    def make(user, item):
        return {
            "query": data.queries(user),
            "item": data.items(item),
            "probability": tf.gather(data.probability, item),
        }

    model = TwoTower()
    model.compile(optimizer=keras.optimizers.Adagrad(0.05), jit_compile=flags.jit)
    watch = Watch(flags, batch_size, 1 / batch_size)
    first = np.random.default_rng(0).permutation(len(data.label))[:batch_size]
    expected = workload.in_batch_loss(arrays["item_log_p"][arrays["item"][first]])
    return {**fit(model, data.batches(batch_size, make), watch), "expected_loss": expected}


def w2(flags, arrays):
    """Exact softmax: a dense layer over the items."""
    batch_size, num_items, label = 512, len(arrays["item_categories"]), None
    if flags.items == "big":
        label = workload.load(flags.data, "labels_big", smoke=flags.smoke)["label"]
        num_items = workload.sizes_of(flags.smoke).big
    data = Data(arrays, label)
    model = keras.Sequential([data.query_tower(), keras.layers.Dense(num_items)])
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=flags.jit,
    )
    watch = Watch(flags, batch_size, 1.0, is_mean_so_far=True)
    batches = data.batches(batch_size, lambda user, label: (data.queries(user), label))
    return {**fit(model, batches, watch), "expected_loss": math.log(num_items)}


def w3(flags, arrays):
    """`tf.nn.sampled_softmax_loss` with its log-uniform sampler."""
    batch_size = 256 if flags.smoke else 1024
    num_items = workload.sizes_of(flags.smoke).huge
    data = Data(arrays, workload.load(flags.data, "labels_huge", smoke=flags.smoke)["label"])

    class Sampled(keras.Model):
        def __init__(self):
            super().__init__()
            self.tower = data.query_tower()
            uniform = keras.initializers.RandomUniform(-0.05, 0.05)
            self.head = self.add_weight("head", (num_items, workload.DIM), initializer=uniform)
            self.bias = self.add_weight("bias", (num_items,), initializer="zeros")

        def train_step(self, batch):
            inputs, label = batch
            label = tf.cast(label, tf.int64)[:, None]
            with tf.GradientTape() as tape:
                losses = tf.nn.sampled_softmax_loss(
                    self.head, self.bias, label, self.tower(inputs), flags.negatives, num_items
                )
                loss = tf.reduce_sum(losses)
            self.optimizer.minimize(loss, self.trainable_variables, tape)
            return {"loss": loss}

    model = Sampled()
    model.compile(optimizer=keras.optimizers.Adagrad(0.05), jit_compile=flags.jit)
    batches = data.batches(batch_size, lambda user, label: (data.queries(user), label))
    return fit(model, batches, Watch(flags, batch_size, 1 / batch_size))


def main() -> None:
    """Times training and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("workload", choices=("w1", "w2", "w3"))
    parser.add_argument("--jit", action="store_true", help="compiled by XLA")
    parser.add_argument("--items", choices=("small", "big"), default="small", help="w2")
    parser.add_argument("--negatives", type=int, default=1024, help="w3")
    flags = parser.parse_args()
    keras.utils.set_random_seed(0)
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    run = {"w1": w1, "w2": w2, "w3": w3}[flags.workload]
    packages = ("tensorflow", "tensorflow-recommenders", "tf_keras", "numpy")
    harness.report(packages, **run(flags, arrays))


if __name__ == "__main__":
    main()
