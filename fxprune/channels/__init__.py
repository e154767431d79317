"""Channels: ids, the groups that channels form, and costs as polynomials.

`ids` says what a dimension carries, `grouping` turns ids into the channels and groups of a `ChannelGraph` (in `graph`),
and `polynomial` counts FLOPs for any set of kept channels.
"""

from fxprune.channels.graph import Block, ChannelGraph, Dimension, Frozen, Group, NoBlock
from fxprune.channels.ids import (
    Dim,
    Ids,
    IdTable,
    Labels,
    LabelTree,
    Scores,
    Size,
    is_labelled,
    labels_in,
    map_labels,
    size_of,
)

# fmt: off
__all__ = [
    "Block", "ChannelGraph", "Dim", "Dimension", "Frozen", "Group", "IdTable", "Ids", "LabelTree", "Labels", "NoBlock",
    "Scores", "Size", "is_labelled", "labels_in", "map_labels", "size_of",
]
# fmt: on
