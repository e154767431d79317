"""Graph networks, point clouds, recommenders: models that gather and scatter by indices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Cases
from invariant import NotSaved, tokens
from torch import nn

CASES = Cases()


@CASES.model(
    (torch.randn(4, 6), torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 0, 1]])),
    8,
    other_batch=False,
    a=nn.Linear(6, 8),
    b=nn.Linear(8, 8),
    c=nn.Linear(8, 2),
)
def graph_convolution(self, x, edges):
    x = self.a(x).relu()
    messages = self.b(x[edges[0]])
    total = torch.zeros(x.shape[0], 8, dtype=x.dtype).index_add(0, edges[1], messages)
    return self.c(x + total)


@CASES.model(
    (torch.randn(5, 6), torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 0, 1]])),
    8,
    other_batch=False,
    embed=nn.Linear(6, 8),
    message=nn.Linear(16, 8),
    update=nn.GRUCell(8, 8),
    head=nn.Linear(8, 2),
)
def message_passing(self, x, edges):
    h = self.embed(x)
    source, target = edges
    for _ in range(2):
        m = self.message(torch.cat([h[source], h[target]], -1)).relu()
        total = torch.zeros_like(h).scatter_add_(0, target.unsqueeze(-1).expand_as(m), m)
        h = self.update(total, h)
    return self.head(h.mean(0, keepdim=True))


@CASES.model(
    torch.randn(2, 6, 20),
    13,
    other_batch=False,
    i=nn.Conv1d(6, 5, 1),
    c=nn.Conv2d(10, 8, 1, bias=False),
    norm=nn.BatchNorm2d(8),
    head=nn.Linear(16, 2),
)
def edge_convolution(self, x):
    """Of each point and its three nearest neighbours."""
    x = self.i(x)
    b, c, n = x.shape
    inner = -2 * x.transpose(2, 1) @ x
    squares = (x**2).sum(1, keepdim=True)
    distances = -squares - inner - squares.transpose(2, 1)
    index = distances.topk(3, -1)[1]
    index = (index + torch.arange(b).view(-1, 1, 1) * n).view(-1)
    points = x.transpose(2, 1).contiguous()
    near = points.view(b * n, -1)[index].view(b, n, 3, c)
    points = points.view(b, n, 1, c).repeat(1, 1, 3, 1)
    f = torch.cat((near - points, points), 3).permute(0, 3, 1, 2)
    y = F.leaky_relu(self.norm(self.c(f)), 0.2).max(-1)[0]
    return self.head(torch.cat([F.adaptive_max_pool1d(y, 1).view(b, -1), F.adaptive_avg_pool1d(y, 1).view(b, -1)], 1))


@CASES.model(
    (torch.randn(2, 5), torch.randint(0, 4, (2, 3)), torch.rand(2, 3)),
    21,
    tables=nn.ModuleList([nn.Embedding(4, 6) for _ in range(3)]),
    bottom=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)),
    top=nn.Sequential(nn.Linear(6 + 6, 7), nn.ReLU(), nn.Linear(7, 1)),
    i=NotSaved(torch.tensor([1, 2, 2, 3, 3, 3])),
    j=NotSaved(torch.tensor([0, 0, 1, 0, 1, 2])),
)
def recommender(self, dense, ids, weights):
    """DLRM: the products of each two of its vectors."""
    x = self.bottom(dense)
    looked_up = [table(ids[:, k]) * weights[:, k : k + 1] for k, table in enumerate(self.tables)]
    vectors = torch.stack([x] + looked_up, 1)
    products = torch.bmm(vectors, vectors.transpose(1, 2))
    return self.top(torch.cat([x, products[:, self.i, self.j]], 1)).sigmoid()


@CASES.model(torch.arange(12).view(2, 6) % 9, 6, embed=nn.Embedding(9, 6), head=nn.Linear(6, 3))
def table_used_after_the_lookup(self, ids):
    """The input indexes the rows of the embedding, so they stay, whatever else its weight is used for."""
    h = self.embed(ids)
    return self.head(h + (h @ self.embed.weight.t()).relu() @ self.embed.weight)


@CASES.model(tokens(), 8, other_batch=False, a=nn.Linear(4, 8), o=nn.Linear(8, 2))
def tokens_summed_by_index(self, x):
    zeros = torch.zeros(2, 3, 8, dtype=x.dtype)
    return self.o(zeros.index_add(1, torch.tensor([0, 1, 2, 0, 1]), self.a(x)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_of_graphs_or_tables_is_pruned_correctly(case):
    case.check()
