"""fxprune: smaller and faster PyTorch models at a FLOPs budget."""

from fxprune.analysis import analyze
from fxprune.api import prune
from fxprune.channels import ChannelGraph, Dimension, Frozen, Group
from fxprune.compensation.compensate import compensate
from fxprune.data import Batch
from fxprune.errors import CannotScoreError, FxpruneError, FxpruneWarning, UnreachableBudgetError
from fxprune.files.checkpoint import load, save
from fxprune.files.exporting import export
from fxprune.flops import count_flops
from fxprune.gates import Gates, insert_gates, learn_gates, remove_gates
from fxprune.latency.channels import time_channels
from fxprune.latency.measure import Latency, measure_latency
from fxprune.optimizers import prune_optimizer
from fxprune.parts import PrunedParts, prune_parts
from fxprune.planning.make import make_plan
from fxprune.planning.plan import Plan
from fxprune.provenance import plan_of
from fxprune.reporting import Report, report
from fxprune.restoring import restore_class
from fxprune.rewriting import rewrite
from fxprune.scoring.criteria import scores
from fxprune.tracing.tracer import trace
from fxprune.training.finetune import DivergenceError, Epoch, finetune
from fxprune.verification import verify

__all__ = [
    "Batch",
    "CannotScoreError",
    "ChannelGraph",
    "Dimension",
    "DivergenceError",
    "Epoch",
    "Frozen",
    "FxpruneError",
    "FxpruneWarning",
    "Gates",
    "Group",
    "Latency",
    "Plan",
    "PrunedParts",
    "Report",
    "UnreachableBudgetError",
    "analyze",
    "compensate",
    "count_flops",
    "export",
    "finetune",
    "insert_gates",
    "learn_gates",
    "load",
    "make_plan",
    "measure_latency",
    "plan_of",
    "prune",
    "prune_optimizer",
    "prune_parts",
    "remove_gates",
    "report",
    "restore_class",
    "rewrite",
    "save",
    "scores",
    "time_channels",
    "trace",
    "verify",
]
