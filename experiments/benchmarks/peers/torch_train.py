"""W1 to W4 in PyTorch, as its documentation has one write them.

    python -m experiments.benchmarks.peers.torch_train w1 [--sparse] [--compile]

Batches are rows of tensors in memory. Tables begin as U(-0.05, 0.05): torch's own N(0, 1) would
begin far from the loss of a uniform guess. Adagrad is on the sum of the losses, Adam on the mean.
"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks import harness, workload


class Tower(nn.Module):
    """An id, categories, a padded list and numbers, through hidden layers."""

    def __init__(self, ids: int, categories: tuple, listed: int, numbers: int, *, sparse: bool):
        super().__init__()
        dim = workload.FEATURE_DIM
        self.id = nn.Embedding(ids, dim, sparse=sparse)
        self.categories = nn.ModuleList(nn.Embedding(n, dim, sparse=sparse) for n in categories)
        self.listed = nn.EmbeddingBag(
            listed + 1, dim, mode="mean", padding_idx=listed, sparse=sparse
        )
        width = dim * (2 + len(categories)) + numbers
        layers: list[nn.Module] = []
        for hidden in workload.HIDDEN:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, workload.DIM))
        for table in (self.id, *self.categories, self.listed):
            nn.init.uniform_(table.weight, -0.05, 0.05)

    def forward(self, ids, categories, numbers, listed):
        """Embeds a batch."""
        embedded = [table(categories[:, i]) for i, table in enumerate(self.categories)]
        return self.layers(torch.cat([self.id(ids), self.listed(listed), *embedded, numbers], 1))


class Data:
    """The workload as tensors."""

    def __init__(self, arrays: workload.Arrays, label: np.ndarray | None = None):
        def tensor(name: str, padding: int = 0) -> torch.Tensor:
            array = arrays[name]
            return torch.from_numpy(np.where(array == -1, padding, array) if padding else array)

        self.num_items = len(arrays["item_categories"])
        self.user = tensor("user")
        self.label = tensor("item") if label is None else torch.from_numpy(label)
        self.log_p = tensor("item_log_p")
        self._users = [tensor("user_categories"), tensor("user_numbers")]
        self._users.append(tensor("user_watched", self.num_items))
        self._items = [tensor("item_categories"), tensor("item_numbers")]
        self._items.append(tensor("item_tags", workload.TAGS))

    def queries(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """What the query tower reads of these interactions."""
        user = self.user[rows]
        return [user, *(array[user] for array in self._users)]

    def items(self, item: torch.Tensor) -> list[torch.Tensor]:
        """What the item tower reads of these items."""
        return [item, *(array[item] for array in self._items)]

    def query_tower(self, sparse: bool) -> Tower:
        """A new tower."""
        sizes = len(self._users[0]), workload.USER_CATEGORIES, self.num_items
        return Tower(*sizes, workload.USER_NUMBERS, sparse=sparse)

    def item_tower(self, sparse: bool) -> Tower:
        """A new tower."""
        sizes = self.num_items, workload.ITEM_CATEGORIES, workload.TAGS
        return Tower(*sizes, workload.ITEM_NUMBERS, sparse=sparse)


def adagrad(*modules: nn.Module, rate=0.05, accumulator=0.1) -> torch.optim.Optimizer:
    """The workload's Adagrad."""
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.Adagrad(parameters, lr=rate, initial_accumulator_value=accumulator)


def w1(flags, arrays):
    """Two towers and in-batch softmax with logQ."""
    batch_size = 512 if flags.smoke else 4096
    data = Data(arrays)
    query, item = data.query_tower(flags.sparse), data.item_tower(flags.sparse)

    def loss_of(queries, items, log_p):
        scores = query(*queries) @ item(*items).T - log_p
        return F.cross_entropy(scores, torch.arange(len(scores)), reduction="sum")

    def ask(rows):
        label = data.label[rows]
        return data.queries(rows), data.items(label), data.log_p[label]

    step = _step(flags, batch_size, loss_of, ask, adagrad(query, item))
    first = next(workload.orders(len(arrays["user"]), batch_size))
    expected = workload.in_batch_loss(arrays["item_log_p"][arrays["item"][first]])
    return {**harness.time_steps(step, flags, batch_size), "expected_loss": expected}


def w2(flags, arrays):
    """Exact softmax."""
    batch_size, num_items = 512, len(arrays["item_categories"])
    label = None
    if flags.items == "big":
        label = workload.load(flags.data, "labels_big", smoke=flags.smoke)["label"]
        num_items = workload.sizes_of(flags.smoke).big
    data = Data(arrays, label)
    model = nn.Sequential(data.query_tower(flags.sparse), nn.Linear(workload.DIM, num_items))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss_of(queries, labels):
        return F.cross_entropy(model[1](model[0](*queries)), labels, reduction="sum")

    def ask(rows):
        return data.queries(rows), data.label[rows].long()

    step = _step(flags, batch_size, loss_of, ask, optimizer, mean=True)
    result = harness.time_steps(step, flags, batch_size)
    return {**result, "expected_loss": math.log(num_items)}


def w3(flags, arrays):
    """Sampled softmax, which torch does not have: written out."""
    batch_size = 256 if flags.smoke else 1024
    num_items = workload.sizes_of(flags.smoke).huge
    data = Data(arrays, workload.load(flags.data, "labels_huge", smoke=flags.smoke)["label"])
    rank = torch.arange(num_items, dtype=torch.float64)
    log_q = torch.log(torch.log1p(1 / (rank + 1)) / math.log(num_items + 1) * flags.negatives)
    log_q = log_q.float()
    tower = data.query_tower(flags.sparse)
    head = nn.Embedding(num_items, workload.DIM, sparse=flags.sparse)
    bias = nn.Embedding(num_items, 1, sparse=flags.sparse)
    nn.init.uniform_(head.weight, -0.05, 0.05)
    nn.init.zeros_(bias.weight)

    def loss_of(queries, labels, drawn):
        psi = tower(*queries)
        own = (psi * head(labels)).sum(1) + bias(labels)[:, 0] - log_q[labels]
        others = psi @ head(drawn).T + bias(drawn)[:, 0] - log_q[drawn]
        others = others.masked_fill(labels[:, None] == drawn, -1e9)
        scores = torch.cat([own[:, None], others], 1)
        return F.cross_entropy(scores, torch.zeros_like(labels), reduction="sum")

    def ask(rows):
        drawn = torch.exp(torch.rand(flags.negatives).double() * math.log(num_items + 1)) - 1
        drawn = drawn.long().clamp_(0, num_items - 1)
        return data.queries(rows), data.label[rows].long(), drawn

    step = _step(flags, batch_size, loss_of, ask, adagrad(tower, head, bias))
    return harness.time_steps(step, flags, batch_size)


def w4(flags, arrays):
    """Matrix factorisation by BPR, one uniform negative an example."""
    batch_size = 512 if flags.smoke else 8192
    user, item = torch.from_numpy(arrays["user"]), torch.from_numpy(arrays["item"])
    num_users, num_items = len(arrays["user_categories"]), len(arrays["item_categories"])
    users = nn.Embedding(num_users, workload.DIM, sparse=flags.sparse)
    items = nn.Embedding(num_items, workload.DIM, sparse=flags.sparse)
    for table in (users, items):
        nn.init.uniform_(table.weight, -0.05, 0.05)

    def loss_of(asked, labels, others):
        difference = (users(asked) * (items(labels) - items(others))).sum(1)
        return -F.logsigmoid(difference).sum()

    def ask(rows):
        return user[rows], item[rows], torch.randint(num_items, (len(rows),))

    optimizer = adagrad(users, items, rate=0.15, accumulator=0.001)
    step = _step(flags, batch_size, loss_of, ask, optimizer)
    began = time.perf_counter()
    first = float(step())
    first_step = time.perf_counter() - began
    curve = harness.Accuracy(arrays)
    for _ in range(round(flags.epochs * flags.points)):
        began = time.perf_counter()
        for _ in range(len(user) // batch_size // flags.points):
            step()
        seconds = time.perf_counter() - began
        curve.add(seconds, users.weight.detach().numpy(), items.weight.detach().numpy())
    return {
        **curve.result(1 / flags.points),
        "first_loss": first,
        "expected_loss": math.log(2),
        "first_step_s": first_step,
        "warmup_s": first_step,
    }


def _step(flags, batch_size, loss_of, ask, optimizer, *, mean=False):
    """A function that takes a step and returns the mean loss."""
    if flags.compile:
        loss_of = torch.compile(loss_of)
    size = workload.sizes_of(flags.smoke).interactions
    batches = workload.orders(size, batch_size)

    def step():
        total = loss_of(*ask(torch.from_numpy(next(batches))))
        loss = total / batch_size
        optimizer.zero_grad()
        (loss if mean else total).backward()
        optimizer.step()
        return loss.detach()

    return step


def main() -> None:
    """Times training and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("workload", choices=("w1", "w2", "w3", "w4"))
    parser.add_argument("--sparse", action="store_true", help="gradients of tables are sparse")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--items", choices=("small", "big"), default="small", help="w2")
    parser.add_argument("--negatives", type=int, default=1024, help="w3")
    parser.add_argument("--epochs", type=float, default=6.0, help="w4")
    parser.add_argument("--points", type=int, default=16, help="w4: accuracies in an epoch")
    flags = parser.parse_args()
    if flags.smoke:
        flags.epochs, flags.points = 2.0, 2
    torch.manual_seed(0)
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    run = {"w1": w1, "w2": w2, "w3": w3, "w4": w4}[flags.workload]
    harness.report(("torch", "numpy"), **run(flags, arrays))


if __name__ == "__main__":
    main()
