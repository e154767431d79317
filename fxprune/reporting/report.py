"""report(): the facts of a pruned model as one value, which prints as a table and writes an HTML page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from torch import nn

from fxprune.errors import called_as
from fxprune.files.writing import replace_file
from fxprune.latency.measure import Latency, measure_latency
from fxprune.models import Source
from fxprune.provenance import plan_of, pruning_notes
from fxprune.reporting import page, text
from fxprune.reporting.basis import Basis, make_basis
from fxprune.reporting.facts import Certificate, Change, FrozenFacts, GroupFacts, LayerFacts, Memory, Row, total
from fxprune.reporting.measuring import certify, memory_of
from fxprune.reporting.numbers import TIMES, arrow
from fxprune.reporting.originals import rebuilt
from fxprune.reporting.structure import structure
from fxprune.running import trees
from fxprune.running.devices import check_values
from fxprune.tracing.notes import call_of, example_of, trace_notes

__all__ = ["Report", "report"]


@dataclass(frozen=True, repr=False)
class Report:
    """The facts of a pruned model. ``print(report)`` shows tables, `to_html` makes a page.

    Attributes:
        model: how the original is built, or the name of its class.
        inputs: the shapes that FLOPs, latency and memory are for.
        flops: before and after, as fvcore counts them.
        flops_target: the budget; the FLOPs before where only something else had a budget.
        parameters: before and after.
        params_target: the budget, as a fraction of the original's parameters; None without one.
        blocks: the names of the blocks that are left out.
        groups: channels that are pruned together, each with the layers that compute them.
        frozen: channels that cannot be pruned, by reason.
        layers: each layer, in the order of the computation.
        rows: the graph: layers, and the places where branches meet.
        compensated: the corrections that compensation made to the weights.
        samples: what scores and compensation looked at if no data was given; else empty.
        certificate: the comparison with the zero-masked original; None without the original or a run.
        latency: of the original and the pruned model, in alternating calls; None without a run.
        latency_target: the budget, as a fraction of the original's latency; None without one.
        memory: of the original and the pruned model.
        memory_target: the budget of activations, as a fraction of the original's; None without one.
        remarks: what the tracer took as constant.
        source: how the original can be built again.
    """

    model: str
    inputs: str
    flops: Change
    flops_target: int
    parameters: Change
    params_target: float | None
    blocks: tuple[str, ...]
    groups: tuple[GroupFacts, ...]
    frozen: tuple[FrozenFacts, ...]
    layers: tuple[LayerFacts, ...]
    rows: tuple[Row, ...]
    compensated: tuple[str, ...]
    samples: str
    method: str
    certificate: Certificate | None
    latency: tuple[Latency | None, Latency] | None
    latency_target: float | None
    memory: tuple[Memory | None, Memory]
    memory_target: float | None
    remarks: tuple[str, ...]
    source: Source | None

    def __repr__(self) -> str:
        certificate = "" if self.certificate is None else ", verified" if self.certificate.holds else ", NOT verified"
        return (
            f"<Report of {self.model}: FLOPs {arrow(self.flops)}, parameters {arrow(self.parameters)}, "
            f"{len(self.groups)} groups{certificate}>"
        )

    def __str__(self) -> str:
        return text.plain(self)

    def __rich__(self) -> RenderableType:
        return text.rendered(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        values: dict[str, Any] = asdict(self)
        del values["rows"]
        return values

    def to_html(self, path: str | Path | None = None, *, file: str = "small.safetensors") -> str:
        """The report as one self-contained HTML page, which loads nothing from elsewhere.

        Args:
            path: a file to write the page to, atomically; default: none.
            file: the name of the pruned model's file, for the lines that show how to load it.

        Raises:
            FxpruneError: the page cannot be written.
        """
        content = page.page(self, file)
        if path is not None:
            replace_file(Path(path), content.encode(), "report")
        return content


@called_as("report(pruned, original=model)")
def report(
    pruned: nn.Module, *, original: nn.Module | None = None, measure: bool = True, repeats: int = 10
) -> Report:  # fmt: skip
    """What was pruned where, what the model costs now, and whether it is right.

    Args:
        pruned: what `fxprune.prune`, `fxprune.rewrite` or `fxprune.load` returned; not changed.
        original: the model before pruning; not changed. Without it, a model of timm or torchvision is built again with
            random weights, which suffices to certify the structure and to measure. For any other model the report then
            has only what the pruned model knows: no certificate, and no latency or memory of the original.
        measure: whether to run the models, for certificate, latency and peak memory.
        repeats: timed calls of each model, see `fxprune.measure_latency`.

    Raises:
        FxpruneError: `pruned` was not made by fxprune, or not from `original`.

    Examples:
        >>> import fxprune, torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> small = fxprune.prune(model, 0.5, example_inputs=torch.zeros(1, 3, 8, 8), compensate=False)
        >>> [(group.channels.before, group.channels.after) for group in report(small, original=model).groups]
        [(8, 4)]
    """
    notes = pruning_notes(pruned)
    plan = notes.plan
    is_given = original is not None
    original = rebuilt(pruned) if original is None else original
    if measure:
        check_values("report with measure=True", pruned, *([] if original is None else [original]))
    basis = make_basis(pruned, original)
    parts = structure(basis)
    source = trace_notes(pruned).source
    certificate: Certificate | None = None
    latency: tuple[Latency | None, Latency] | None = None
    memory = (
        None if original is None else memory_of(original, example_of(pruned), run=measure),
        memory_of(pruned, run=measure),
    )
    if measure:
        if original is None:
            latency = (None, measure_latency(pruned, repeats=repeats))
        else:
            certificate = certify(original, pruned, random_weights=not is_given)
            first, second = measure_latency([original, pruned], example_of(pruned), repeats=repeats)
            latency = (first, second)
    return Report(
        model=source.spec if source is not None else basis.original.model,
        inputs=_shapes(pruned),
        flops=Change(plan.flops_before, plan.flops),
        flops_target=plan.flops_target,
        parameters=_parameters(pruned, basis),
        params_target=_limit(plan.params_target),
        blocks=tuple(plan.removed),
        groups=parts.groups,
        frozen=parts.frozen,
        layers=parts.layers,
        rows=parts.rows,
        compensated=notes.compensated,
        samples=notes.samples,
        method=notes.method,
        certificate=certificate,
        latency=latency,
        latency_target=_limit(plan.latency_target),
        memory=memory,
        memory_target=_limit(plan.memory_target),
        remarks=basis.graph.remarks if basis.whole else (),
        source=source,
    )


def _limit(target: float) -> float | None:
    return target if target < 1 else None


def _parameters(pruned: nn.Module, basis: Basis) -> Change:
    names = [name for name, _ in (basis.graph.module if basis.whole else pruned).named_parameters()]
    change = total(basis.size(name) for name in names)
    # Without the original nothing says which tensors of removed blocks were parameters.
    return change if basis.whole or not plan_of(pruned).removed else Change(None, change.after)


def _shapes(pruned: nn.Module) -> str:
    return ", ".join(f" {TIMES} ".join(map(str, tensor.shape)) for tensor in trees.tensors(call_of(pruned)))
