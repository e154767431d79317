"""Linear layers, matrix products, einsum, embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from invariant import check_invariant, net, parameter, tokens
from layer_nets import invariant_test
from torch import nn

X = torch.randn(3, 4)

NETS = {
    "with a weight that is not zero where its parameter is": (
        lambda: net(
            lambda self, x: self.out(F.linear(x, 1 + self.w, self.b).sum(-1, keepdim=True)),
            w=parameter(6, 4),
            b=parameter(6),
            out=nn.Linear(1, 2),
        ),
        X,
        0,
    ),
    "with a bias that is not zero where its parameter is": (
        lambda: net(
            lambda self, x: self.out(F.linear(x, self.w, 1 + self.b).sum(-1, keepdim=True)),
            w=parameter(6, 4),
            b=parameter(6),
            out=nn.Linear(1, 2),
        ),
        X,
        0,
    ),
    "a weight without rows": (
        lambda: net(
            lambda self, x: self.out(F.linear(self.a(x).reshape(-1, 2, 3).softmax(2), self.w).reshape(-1, 2)),
            a=nn.Linear(4, 6),
            w=parameter(3),
            out=nn.Linear(2, 2),
        ),
        X,
        2,
    ),
    "tensordot": (
        lambda: net(
            lambda self, x: torch.tensordot(torch.tensordot(x, self.v, dims=1).tanh(), self.w, dims=([2], [1])),
            v=parameter(4, 6),
            w=parameter(2, 6),
        ),
        tokens(),
        6,
    ),
    "an embedding bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(7, 6), nn.Tanh(), nn.Linear(6, 2)),
        torch.tensor([[0, 1, 2], [6, 5, 5]]),
        6,
    ),
    "a chain": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)),
        X,
        11,
    ),
    "on sequences": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), tokens(), 6),
    "functional": (
        lambda: net(
            lambda self, x: F.linear(F.linear(x, self.v, self.b).tanh(), self.w),
            v=parameter(6, 4),
            b=parameter(6),
            w=parameter(2, 6),
        ),
        X,
        6,
    ),
    "matmul with parameters": (
        lambda: net(
            lambda self, x: torch.matmul((x @ self.v + self.b).sigmoid(), self.w),
            v=parameter(4, 6),
            b=parameter(6),
            w=parameter(6, 2),
        ),
        tokens(),
        6,
    ),
    "matmul of a matrix and a batch": (
        lambda: net(
            lambda self, x: self.w @ (self.v @ x).sigmoid(),
            v=parameter(6, 5),
            w=parameter(2, 6),
        ),
        tokens(),
        6,
    ),
    "mm and addmm": (
        lambda: net(
            lambda self, x: torch.addmm(self.b, torch.mm(x, self.v).sigmoid(), self.w),
            v=parameter(4, 6),
            b=parameter(2),
            w=parameter(6, 2),
        ),
        X,
        6,
    ),
    "addmm whose sum goes on": (
        lambda: net(
            lambda self, x: torch.mm(torch.addmm(self.b, x, self.v).sigmoid(), self.w),
            v=parameter(4, 6),
            b=parameter(6),
            w=parameter(6, 2),
        ),
        X,
        6,
    ),
    "bmm of two activations": (
        lambda: net(
            lambda self, x: torch.bmm(self.a(x), self.b(x).transpose(1, 2)), a=nn.Linear(4, 6), b=nn.Linear(4, 6)
        ),
        tokens(),
        6,
    ),
    "baddbmm": (
        lambda: net(
            lambda self, x: torch.baddbmm(
                self.c(x).mean(1, keepdim=True), self.a(x), self.b(x).transpose(1, 2), beta=0.5
            ),
            a=nn.Linear(4, 6),
            b=nn.Linear(4, 6),
            c=nn.Linear(4, 5),
        ),
        tokens(),
        6,
    ),
    "a product of activations that are not zero where channels go is frozen": (
        lambda: net(lambda self, x: self.a(x).sigmoid() @ self.b(x).sigmoid().mT, a=nn.Linear(4, 6), b=nn.Linear(4, 6)),
        tokens(),
        0,
    ),
    "a product of activations of which one is zero where channels go": (
        lambda: net(lambda self, x: self.a(x).sigmoid() @ self.b(x).relu().mT, a=nn.Linear(4, 6), b=nn.Linear(4, 6)),
        tokens(),
        6,
    ),
    "a matrix times a vector": (
        lambda: net(lambda self, x: torch.mv(self.a(x).sigmoid(), self.w), a=nn.Linear(4, 6), w=parameter(6)),
        X,
        6,
    ),
    "channels as rows of a product": (
        lambda: net(
            lambda self, x: self.out((self.a(x).mT @ x @ self.w).mT),
            a=nn.Linear(4, 6),
            w=parameter(4, 3),
            out=nn.Linear(6, 2),
        ),
        tokens(),
        9 - 3,
    ),
    "einsum": (
        lambda: net(
            lambda self, x: torch.einsum("bnd,od->bno", torch.einsum("...c,dc->...d", x, self.v).sigmoid(), self.w),
            v=parameter(6, 4),
            w=parameter(2, 6),
        ),
        tokens(),
        6,
    ),
    "einsum of activations, the result implied": (
        lambda: net(
            lambda self, x: torch.einsum("bnd,bmd", self.a(x), self.b(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6)
        ),
        tokens(),
        6,
    ),
    "einsum of three operands": (
        lambda: net(
            lambda self, x: torch.einsum("bnd,de,oe->bno", self.a(x), self.v, self.w),
            a=nn.Linear(4, 6),
            v=parameter(6, 5),
            w=parameter(2, 5),
        ),
        tokens(),
        11,
    ),
    "einsum that sums what is not zero is frozen": (
        lambda: net(lambda self, x: torch.einsum("bnd->bn", self.a(x).sigmoid()), a=nn.Linear(4, 6)),
        tokens(),
        0,
    ),
    "an embedding module": (
        lambda: nn.Sequential(nn.Embedding(7, 6, padding_idx=0), nn.Sigmoid(), nn.Linear(6, 2)),
        (torch.randint(0, 7, (2, 5)),),
        6,
    ),
    "a functional embedding": (
        lambda: net(lambda self, i: self.out(F.embedding(i, self.table)), table=parameter(7, 6), out=nn.Linear(6, 2)),
        (torch.randint(0, 7, (2, 5)),),
        6,
    ),
    "tied to an embedding": (
        lambda: net(lambda self, i: F.linear(self.table(i).tanh(), self.table.weight), table=nn.Embedding(7, 6)),
        (torch.randint(0, 7, (2, 5)),),
        6,
    ),
    "a linear layer called twice": (
        lambda: net(
            lambda self, x: self.out(self.mid(self.mid(self.a(x)).relu()).sigmoid()),
            a=nn.Linear(4, 6),
            mid=nn.Linear(6, 6),
            out=nn.Linear(6, 2),
        ),
        X,
        6,
    ),
    "bilinear": (
        lambda: net(
            lambda self, x: self.out(self.both(self.a(x), x)),
            a=nn.Linear(4, 6),
            both=nn.Bilinear(6, 4, 5),
            out=nn.Linear(5, 2),
        ),
        X,
        11,
    ),
}


test_matrix_products_keep_the_invariant = invariant_test(NETS)


def test_products_that_are_summed_over_a_batch_keep_the_invariant() -> None:
    check_invariant(
        net(lambda self, x: torch.addbmm(x[0, :, :1], self.a(x), self.b(x).mT), a=nn.Linear(4, 6), b=nn.Linear(4, 6)),
        tokens(), 6, other_batch=False,
    )  # fmt: skip
