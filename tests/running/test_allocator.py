"""Main memory that is freed stays with the process inside, and goes back to the system in the end."""

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.compensation.synthesis import fit_to_statistics
from fxprune.running import allocator
from fxprune.running.allocator import keep_freed_memory

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

_PAGE = resource.getpagesize()
# Activations of 34 MB: above what glibc keeps by itself.
_NET = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
_IMAGES = torch.zeros(8, 3, 256, 256)
_ACTIVATION = 8 * 16 * 256 * 256 * 4


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Nothing in the environment sets malloc."""
    for name in allocator._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    allocator._glibc.cache_clear()
    yield
    allocator._glibc.cache_clear()


def cleared(times=6):
    """Bytes of memory that the system clears in a pass, in the mean."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        _NET(_IMAGES).sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * _PAGE / times


def resident():
    """Bytes of main memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def test_freed_memory_is_used_again_inside_and_given_back_after():
    cleared(1)
    usually, before = cleared(), resident()
    with keep_freed_memory():
        cleared(2)
        assert cleared() < usually / 2
        assert resident() > before + 2 * _ACTIVATION
    assert resident() < before + _ACTIVATION


def test_only_the_outermost_gives_back():
    before = resident()
    with keep_freed_memory():
        with keep_freed_memory():
            cleared(2)
        assert resident() > before + 2 * _ACTIVATION


def test_it_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), keep_freed_memory():
        raise ZeroDivisionError
    assert allocator._inside == 0


def test_who_sets_malloc_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    allocator._glibc.cache_clear()
    assert allocator._glibc() is None
    with keep_freed_memory():
        assert allocator._inside == 0


@pytest.mark.parametrize("run", ["scores", "compensate", "fit_to_statistics", "learn_gates", "finetune"])
def test_it_is_kept_where_a_model_runs_on_batches(run):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 2
    graph = fxprune.analyze(fxprune.trace(model, images[:1]))
    seen = []

    def told(*_):
        seen.append(allocator._inside)

    if run == "scores":
        fxprune.scores(graph, "fisher", data=[images], progress=told)
    elif run == "compensate":
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, fxprune.scores(graph, "l2"), flops=0.6))
        fxprune.compensate(graph, pruned, images, progress=told)
    elif run == "fit_to_statistics":
        fit_to_statistics(graph.module, images, steps=1, progress=told)
    elif run == "learn_gates":
        fxprune.learn_gates(graph, [(images, labels)], start="l2", progress=told)
    else:
        fxprune.finetune(model, [(images, labels)], progress=told)
    assert seen
    assert all(depth > 0 for depth in seen)
    assert allocator._inside == 0
