"""Two-tower retrieval: a query tower and an item tower over features, softmax over their products.

    python -m recjax.main --config=configs/two_tower.py                      # planted world
    python -m recjax.main --config=configs/two_tower.py:movielens-1m --config.data.dir=DIR

The word after the colon names the data: synthetic (the default), movielens-100k, movielens-1m,
movielens-20m, movielens-25m, movielens-32m, gowalla, table (your own Parquet or CSV files) or
prepared (what `python -m recjax.prepare` made of such files, of any size).
Every key stands here with its legal values; `softmax.py` and `mf.py` change a few of them.
"""

from ml_collections import ConfigDict

DATA = (
    "synthetic",
    "movielens-100k",
    "movielens-1m",
    "movielens-20m",
    "movielens-25m",
    "movielens-32m",
    "gowalla",
    "table",
    "prepared",
)


def get_config(data: str = "synthetic") -> ConfigDict:
    """The two-tower model on one of the data sets in DATA."""
    if data not in DATA:
        raise ValueError(f"unknown data {data!r}; legal: {', '.join(DATA)}")
    c = ConfigDict()
    c.seed = 0  # the root of every random choice but the split's

    c.data = ConfigDict()
    c.data.name = data  # one of DATA
    c.data.dir = ""  # the folder that holds the files
    c.data.download = False  # fetch MovieLens from its official address into data.dir
    c.data.unknown_items = "error"  # error | drop: interactions whose item the item table lacks
    c.data.synthetic = _synthetic()

    c.split = ConfigDict()
    # predefined | leave_one_out | global_time | random | strong_generalisation
    c.split.name = "predefined"
    c.split.valid = 0.1  # share of interactions (strong_generalisation: of users)
    c.split.test = 0.1
    c.split.fold_in = 0.8  # strong_generalisation: share of a held-out user's data that is known
    c.split.seed = 0
    # train | train_and_valid: the last fit, once all is chosen, with nothing left to validate on
    # (eval.patience is 0 there, and train.steps the step that validation chose)
    c.split.fit = "train"

    c.examples = ConfigDict()
    c.examples.labels = "next_item"  # next_item | multi_hot
    c.examples.history = "auto"  # auto | past (next_item) | profile (multi_hot)
    c.examples.history_length = 50
    c.examples.history_dropout = 0.0  # profile only: chance that an item is left out of the history
    c.examples.max_labels = 128  # multi_hot only: labels of one example; more are subsampled
    c.examples.min_history = 1  # next_item only: earlier interactions that an example needs
    # multi_hot only: an example weighs (number of its distinct items) ** weight_power
    c.examples.weight_power = 0.0
    c.examples.max_negatives = 16  # of an example's own (explicit) negatives; more are subsampled

    c.model = ConfigDict()
    c.model.dim = 64  # of psi(x) and of the item embeddings
    c.model.temperature = 1.0  # logits are products divided by this
    c.model.learn_temperature = False  # True: a parameter that begins there
    c.model.normalize = False  # True: both sides have unit length (then lower the temperature)
    # float32 | bfloat16: what layers and logits multiply; sums and all else are float32. For
    # accelerators: a CPU gets the same numbers and no speed
    c.model.compute_dtype = "float32"
    c.model.feature_dim = 32  # width of each feature's embedding
    c.model.query = ConfigDict()
    # all = every user, history and context feature but the id; or names: ('user_id', 'age', ...)
    c.model.query.features = ("all",)
    c.model.query.hidden = (128,)
    c.model.query.output = "linear"  # linear | none (the last layer is the embedding)
    c.model.query.activation = "relu"  # relu | gelu | silu | tanh
    c.model.query.normalization = "none"  # none | layer
    c.model.query.dropout = 0.0  # after each hidden layer; without any it must be 0.0
    c.model.query.embedding_dropout = 0.0  # on the entries of the features' embeddings
    # chance that the user's id counts as unknown, for towers that read user_id and more
    c.model.query.id_dropout = 0.0
    c.model.query.pooling = ("mean",)  # any of mean, sqrt, last, attention: side by side
    c.model.query.history_table = "own"  # own | item (the table that the item side uses)
    c.model.item = ConfigDict()
    c.model.item.side = "tower"  # tower | softmax (a matrix of item embeddings)
    c.model.item.features = ("all", "item_id")  # tower only: all = every item feature but the id
    c.model.item.hidden = (128,)
    c.model.item.output = "linear"
    c.model.item.activation = "relu"
    c.model.item.normalization = "none"
    c.model.item.dropout = 0.0  # tower only
    c.model.item.embedding_dropout = 0.0  # tower only
    c.model.item.id_dropout = 0.0  # tower only
    c.model.item.bias = False  # softmax only: one logit bias per item

    c.tables = ConfigDict()
    # dense (optax) | rows (only touched rows are updated) | auto (rows from rows_min rows on)
    c.tables.mode = "auto"
    c.tables.rows_min = 100_000
    c.tables.init = 0.05  # standard deviation of a new row's entries
    # float32 | bfloat16 (half of the memory; rounded up or down by chance): of those in mode rows
    c.tables.dtype = "float32"

    c.loss = ConfigDict()
    c.loss.name = "softmax"  # softmax | bpr | bce | ccl (SimpleX) | bsl (bilateral softmax)
    # full | in_batch | uniform | log_uniform | unigram | mixed | explicit | hard | memory
    c.loss.candidates = "full"
    # mixed: the sources that are joined; in_batch or memory, which brings it, but not both
    c.loss.mixed = ("in_batch", "uniform")
    c.loss.num_sampled = 1024  # uniform, log_uniform, unigram: draws per step; hard: the pool
    c.loss.unigram_power = 0.75  # unigram and hard: items are drawn by their frequency to this
    c.loss.correct_logq = True  # False: the biased estimator without logQ, of drawn candidates
    c.loss.correct_positive = False  # True: log q of the label too (common, biased: 2507.09331)
    c.loss.frequency = "exact"  # exact | streaming (estimated on the way): of in_batch, memory
    c.loss.frequency_rate = 0.01  # streaming: weight of an item's newest occurrence
    c.loss.frequency_buckets = 0  # streaming: 0 = one an item; else ids are hashed into so many
    c.loss.explicit_weight = 1.0  # explicit: weight of a negative of the example's own
    c.loss.hard_negatives = 32  # hard: the best of the pool that each query keeps
    c.loss.hard_refresh = 1  # hard: steps for which a pool is used
    c.loss.memory = 4096  # memory: embeddings of earlier steps that are candidates again
    c.loss.label_smoothing = 0.0  # softmax: share of the label mass spread over the corpus
    c.loss.log_prior = 0.0  # times log popularity, added to training logits (logit adjustment)
    c.loss.negative_weight = 1.0  # bce, ccl
    c.loss.margin = 0.0  # ccl: cosine below which a negative costs nothing
    c.loss.positive_scale = 1.0  # bsl: temperature of the positives over that of the negatives
    c.loss.corpus_chunk = 8192  # full with an item tower: items encoded at a time

    c.optim = ConfigDict()
    c.optim.name = "adam"  # adam | adagrad | row_adagrad (one accumulator a row) | sgd
    c.optim.learning_rate = 2e-3
    c.optim.schedule = "cosine"  # constant | cosine
    c.optim.warmup_steps = 0
    # decoupled; of tables in mode rows it reaches the touched rows only, of dense ones all, and
    # scalars (a learned temperature) never
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 0.0  # 0 = off
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.initial_accumulator = 0.1  # adagrad, row_adagrad
    # float32 | bfloat16: what adam and both forms of adagrad keep of tables in mode rows
    c.optim.moments_dtype = "float32"

    c.train = ConfigDict()
    c.train.batch_size = 512
    c.train.epochs = 4.0
    c.train.steps = 0  # above 0: instead of epochs
    c.train.prefetch = 4  # batches prepared ahead

    c.diagnostics = ConfigDict()
    c.diagnostics.every = 0  # steps between comparisons with the exact gradient; 0 = never
    c.diagnostics.queries = 64  # that are compared
    c.diagnostics.draws = 32  # of candidates, over which bias and variance are taken

    c.profile = ConfigDict()
    c.profile.steps = 0  # training steps whose time is traced into WORKDIR/profile; 0 = none
    c.profile.start = 10  # steps that are taken before

    c.eval = ConfigDict()
    c.eval.every = 0  # steps between validations; 0 = once an epoch
    c.eval.ks = (5, 10, 20, 50)
    c.eval.metric = "recall@10"  # validation metric that chooses the checkpoint
    c.eval.patience = 0  # stop after so many validations without a gain; 0 = never
    c.eval.corpus = "listed"  # listed | rated | seen (in training): the items that are ranked
    c.eval.seen = "known"  # known | train | none: the user's items that are not ranked
    # above 0: of more users with something to predict so many are asked, drawn by their ids
    c.eval.max_queries = 0
    c.eval.batch_size = 256
    c.eval.bootstrap = 1000  # resamples behind the 95 % intervals

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 0  # steps between checkpoints; 0 = at each validation
    c.checkpoint.keep = 2

    c.log = ConfigDict()
    c.log.every = 50  # steps between lines of metrics.jsonl
    c.log.tensorboard = True

    c.parallel = ConfigDict()
    c.parallel.mapper = "shard_map"  # shard_map | pmap (data parallel only)
    c.parallel.data = 0  # devices over which the batch is split; 0 = all that are left
    # devices over which tables, head and the ranked corpus are split, a divisor of 64; 0 = 1, or
    # where the tables with gradients and optimizer state are too large for a device, the fewest
    c.parallel.model = 0
    c.parallel.table_gib = 0.0  # what they may take of a device, in GiB; 0.0 = half its memory

    _on(c, data)
    return c


def _synthetic() -> ConfigDict:
    """The planted world; recjax/data/synthetic.py says what each knob plants."""
    c = ConfigDict()
    c.users = 4000
    c.items = 1500
    c.interactions_per_user = 30
    c.user_features = 0.4  # share of a user's interest that age, country and device explain
    c.history = 0.6  # share that the last `window` items explain; the rest is a hidden taste
    c.item_features = 0.7  # share of an item's latent vector that its categories explain
    c.unobserved = 0.1  # share of interactions drawn from popularity alone
    c.new_users = 0.05  # share of users that appear in test only
    c.new_items = 0.1  # share of items that appear in test only
    c.popularity_exponent = 0.8
    c.strength = 2.0  # how strongly interest decides
    c.window = 5
    c.impressions = 0  # items shown with each interaction and not chosen: the column `negatives`
    c.seed = 0
    return c


def _on(c: ConfigDict, data: str) -> None:
    """What differs from one data set to the next."""
    if data == "synthetic":
        c.examples.history_length = 5
        c.optim.learning_rate = 5e-3
    if data.startswith("movielens"):
        c.split.name = "leave_one_out"
        c.eval.corpus = "rated"
        c.model.feature_dim = 64
        c.model.query.hidden = (256,)
        c.model.query.dropout = 0.2
        c.model.query.pooling = ("attention", "last", "mean")
        c.train.batch_size = 1024
        c.train.epochs = 12.0 if data == "movielens-100k" else 4.0
    if data == "gowalla":  # no times and no features: users are what they visited
        c.examples.labels = "multi_hot"
        c.examples.history_length = 256
        c.examples.history_dropout = 0.5
        c.examples.max_labels = 256
        c.examples.weight_power = 0.5
        c.model.dim = 128
        c.model.feature_dim = 128
        c.model.normalize = True
        c.model.temperature = 0.1
        c.model.query.hidden = ()
        c.model.query.output = "none"
        c.model.query.pooling = ("sqrt",)
        c.model.item.hidden = ()
        c.model.item.output = "none"
        c.optim.learning_rate = 2e-2
        c.train.batch_size = 1024
        c.train.epochs = 20.0
        c.eval.metric = "recall@20"
    if data in (
        "table",
        "prepared",
    ):  # of any size: validated often, stopped when it no longer gains
        c.split.name = "leave_one_out"
        c.train.batch_size = 256
        c.train.epochs = 20.0
        c.eval.patience = 3
    if data == "prepared":
        c.eval.max_queries = 10_000
