"""Models with recurrences, by torch's layers and cells or written as loops."""

from __future__ import annotations

import pytest
import torch
from cases import Cases
from invariant import tokens
from torch import nn

CASES = Cases()


@CASES.model(
    tokens(width=8),
    22,
    embed=nn.Linear(8, 6),
    lstm=nn.LSTM(6, 5, batch_first=True),
    gru=nn.GRU(5, 4, batch_first=True),
    mlp=nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)),
)
def lstm_and_gru(self, x):
    x, _ = self.lstm(self.embed(x))
    x, _ = self.gru(x)
    return self.mlp(x[:, -1])


@CASES.model(
    tokens(),
    14,
    a=nn.Linear(4, 8),
    lstm=nn.LSTM(8, 6, bidirectional=True, batch_first=True),
    o=nn.Linear(12, 2),
)
def bidirectional_lstm(self, x):
    return self.o(self.lstm(self.a(x))[0][:, -1])


@CASES.model(tokens(width=8), 11, embed=nn.Linear(8, 6), cell=nn.GRUCell(6, 5), head=nn.Linear(5, 3))
def gru_cell_in_a_loop(self, x):
    h = x.new_zeros(x.shape[0], 5)
    outputs = []
    for t in range(x.shape[1]):
        h = self.cell(self.embed(x[:, t]), h)
        outputs.append(h)
    return self.head(torch.stack(outputs, 1))


@CASES.model(tokens(width=8), 6, ih=nn.Linear(8, 4 * 6), hh=nn.Linear(6, 4 * 6), head=nn.Linear(6, 3))
def lstm_as_a_loop(self, x):
    h = torch.zeros(x.shape[0], 6, dtype=x.dtype)
    c = torch.zeros_like(h)
    for t in range(x.shape[1]):
        i, f, g, o = (self.ih(x[:, t]) + self.hh(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return self.head(h)


@CASES.model(
    (torch.randint(0, 9, (2, 6)), torch.randint(0, 9, (2, 4))),
    18,
    other_batch=False,
    embed=nn.Embedding(9, 6),
    encoder=nn.GRU(6, 5, bidirectional=True, batch_first=True),
    bridge=nn.Linear(10, 7),
    cell=nn.LSTMCell(6 + 10, 7),
    attention=nn.Linear(7, 10, bias=False),
    out=nn.Linear(17, 9),
)
def sequence_to_sequence(self, a, b):
    memory, h = self.encoder(self.embed(a))
    h = self.bridge(torch.cat([h[0], h[1]], -1)).tanh()
    c, context, outputs = torch.zeros_like(h), memory.mean(1), []
    for t in range(b.size(1)):
        h, c = self.cell(torch.cat([self.embed(b[:, t]), context], -1), (h, c))
        weights = torch.bmm(memory, self.attention(h).unsqueeze(2)).squeeze(2).softmax(1)
        context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
        outputs.append(self.out(torch.cat([h, context], -1)))
    return torch.stack(outputs, 1)


@CASES.model(torch.randn(2, 6, 3, 8, 8), 5, gates=nn.Conv2d(3 + 5, 20, 3, padding=1), head=nn.Conv2d(5, 2, 1))
def convolutional_lstm(self, x):
    batch, length, _, height, width = x.shape
    h = torch.zeros(batch, 5, height, width, dtype=x.dtype, device=x.device)
    c = h.clone()
    outputs = []
    for k in range(length):
        i, f, o, g = torch.split(self.gates(torch.cat([x[:, k], h], 1)), 5, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(self.head(h))
    return torch.stack(outputs, 1)


@CASES.model(
    torch.randn(2, 4, 6),
    16,
    h0=nn.Parameter(torch.zeros(1, 1, 5)),
    embed=nn.Linear(6, 7),
    gru=nn.GRU(7, 5, batch_first=True),
    rnn=nn.RNN(5, 4, nonlinearity="relu", batch_first=True),
    head=nn.Linear(4, 3),
)
def learned_first_state(self, x):
    y, _ = self.gru(self.embed(x), self.h0.expand(-1, x.size(0), -1).contiguous())
    z, _ = self.rnn(y, torch.zeros(1, x.size(0), 4, dtype=x.dtype))
    return self.head(z[:, -1])


@CASES.model(
    torch.randn(2, 5, 6, 3),
    10,
    c=nn.Conv2d(5, 4, 3, padding=1),
    lstm=nn.LSTM(4 * 3, 6, 2, batch_first=True, bidirectional=True, dropout=0.1),
    head=nn.Linear(12, 3),
)
def convolution_then_lstm(self, x):
    x = self.c(x)
    b, c, h, w = x.size()
    x = x.permute(0, 2, 1, 3).contiguous().view(b, h, c * w)
    self.lstm.flatten_parameters()
    x, _ = self.lstm(x)
    return self.head(x).log_softmax(-1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_recurrent_model_is_pruned_correctly(case):
    case.check()
