"""Ids: which are the same channel, which are frozen; labels."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.channels import IdTable, Labels, Size, labels_in, map_labels, size_of


def test_united_ids_are_one_channel_whatever_the_order() -> None:
    ids = IdTable()
    a, b, c = ids.fresh(3), ids.fresh(3), ids.fresh(3)
    ids.unite(c, b[::-1])
    ids.unite(b, a)
    channel, frozen, last_resort = ids.resolve()
    assert channel[a].tolist() == channel[b].tolist() == channel[c][::-1].tolist()
    assert sorted(set(channel.tolist())) == [0, 1, 2]
    assert frozen == last_resort == {}


def test_a_chain_of_a_thousand_unions_is_one_channel() -> None:
    ids = IdTable()
    links = [ids.fresh(1) for _ in range(1000)]
    order = np.random.default_rng(0).permutation(999)
    for k in order:
        ids.unite(links[k], links[k + 1])
    assert set(ids.resolve()[0].tolist()) == {0}


def test_the_partition_is_that_of_a_plain_union_find() -> None:
    random = np.random.default_rng(0)
    ids = IdTable()
    everything = ids.fresh(300)
    parent = list(range(300))

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    for _ in range(20):
        left, right = random.integers(0, 300, 10), random.integers(0, 300, 10)
        ids.unite(everything[left], everything[right])
        for a, b in zip(left, right, strict=True):
            parent[root(a)] = root(b)
    channel = ids.resolve()[0]
    roots = np.array([root(k) for k in range(300)])
    assert ((channel[:, None] == channel[None]) == (roots[:, None] == roots[None])).all()


def test_a_channel_is_frozen_for_the_first_reason_given_to_any_of_its_ids() -> None:
    ids = IdTable()
    a, b = ids.fresh(2), ids.fresh(2)
    ids.freeze(b[:1], "first")
    ids.unite(a, b)
    ids.freeze(a, "second")
    channel, frozen, _ = ids.resolve()
    assert frozen == {channel[a[0]]: "first", channel[a[1]]: "second"}


def test_a_last_resort_is_not_frozen() -> None:
    ids = IdTable()
    a = ids.fresh(2)
    ids.mark_last_resort(a, "norm")
    _, frozen, last_resort = ids.resolve()
    assert frozen == {}
    assert last_resort == {0: "norm", 1: "norm"}


def test_unions_of_different_lengths_are_refused() -> None:
    ids = IdTable()
    with pytest.raises(ValueError, match=r"cannot unite ids of shape \(2,\) with ids of shape \(3,\)"):
        ids.unite(ids.fresh(2), ids.fresh(3))


def test_a_dimension_without_channels_cannot_be_frozen_or_a_last_resort() -> None:
    ids = IdTable()
    ids.freeze(3, "batch")
    ids.mark_last_resort(3, "batch")
    assert ids.resolve()[1:] == ({}, {})


def test_labels_have_a_shape_and_dimensions_with_channels() -> None:
    labels = Labels((2, np.arange(4), 5), (False, True, False))
    assert labels.shape == (2, 4, 5)
    assert labels.labelled == (1,)
    assert labels.take((1, 0)).shape == (4, 2)
    assert labels.replace(0, np.arange(3), zero=True).zero == (True, True, False)
    assert labels.never_zero().zero == (False, False, False)
    assert [size_of(dim) for dim in Labels.plain((3, 1)).dims] == [3, 1]


def test_labels_are_found_and_mapped_in_nested_containers() -> None:
    one, two = Labels.plain((1,)), Labels.plain((2,))
    tree = ({"a": Size(None, True), "b": one}, (None, two))
    assert list(labels_in(tree)) == [one, two]
    mapped = map_labels(lambda label: label.never_zero() if isinstance(label, Labels) else Size(None, False), tree)
    sizes, (nothing, last) = mapped
    assert not sizes["a"].static
    assert nothing is None
    assert last.shape == (2,)
