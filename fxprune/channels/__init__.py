"""Channel ids, the groups that channels form, and their cost as a polynomial."""

from fxprune.channels.graph import ChannelGraph, Dimension, Frozen, Group
from fxprune.channels.ids import Dim, Ids, IdTable, Labels, Scores, Size, is_labelled, map_labels, size_of

__all__ = [
    "ChannelGraph",
    "Dim",
    "Dimension",
    "Frozen",
    "Group",
    "IdTable",
    "Ids",
    "Labels",
    "Scores",
    "Size",
    "is_labelled",
    "map_labels",
    "size_of",
]
