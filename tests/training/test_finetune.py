"""Fine-tuning: it learns, it resumes to the same weights, and any number of processes learns the same."""

from __future__ import annotations

import copy
import math
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune import FxpruneError
from fxprune.training.finetune import DivergenceError, finetune

QUIET = {"progress": False}


def net(norm=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2 if norm else 0), nn.Linear(32, 3)
    )


def samples(n=48):
    """Three classes of images that differ in which part is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 3
    images = torch.randn(n, 1, 6, 6, generator=generator) * 0.3
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 2 * label : 2 * label + 2] += 1
    return images, labels


def loader(batch_size=16, shuffle=True, **keywords):
    return DataLoader(TensorDataset(*samples()), batch_size=batch_size, shuffle=shuffle, **keywords)


def same(a, b, tolerance=0.0):
    return all((a.state_dict()[key] - b.state_dict()[key]).abs().max() <= tolerance for key in a.state_dict())


def test_a_pruned_model_learns_again_and_the_input_stays_as_it_was():
    model = net().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(1, 1, 6, 6), compensate=False)
    before = copy.deepcopy(pruned)
    seen = []
    random_state = torch.get_rng_state()
    trained = finetune(pruned, loader(), epochs=15, lr=0.1, on_epoch=seen.append, **QUIET)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(pruned, before)
    assert not trained.training
    assert fxprune.plan_of(trained) == fxprune.plan_of(pruned)
    images, labels = samples()
    assert (trained(images).argmax(1) == labels).float().mean() > 0.95
    assert [epoch.number for epoch in seen] == list(range(1, 16))
    assert seen[-1].loss < 0.6 * seen[0].loss
    # A cosine ends near zero, and starts at the highest rate.
    assert seen[-1].lr < 0.01 < seen[0].lr <= 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", lambda groups: torch.optim.Adam(groups, lr=0.01)])
def test_without_labels_it_comes_near_the_teacher(optimizer):
    teacher = net(norm=False)
    with torch.no_grad():
        teacher[-1].weight.mul_(20)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[-1].weight.mul_(0.2)
    images, _ = samples()

    @torch.no_grad()
    def distance(model):
        return (model(images).softmax(1) - teacher(images).softmax(1)).norm()

    rate = None if callable(optimizer) else 0.02
    data = [images[:24], images[24:]]
    trained = finetune(student, data, teacher=teacher, epochs=10, optimizer=optimizer, lr=rate, **QUIET)
    assert distance(trained) < 0.5 * distance(student)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, third = (finetune(net(), loader(), epochs=2, seed=seed, **QUIET) for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, third)


def test_a_batch_in_parts_is_the_batch():
    whole = finetune(net(norm=False), loader(16), epochs=2, **QUIET)
    # 48 samples in batches of 9 and 3: what is accumulated differs in size.
    parts = finetune(net(norm=False), loader(4), epochs=2, gradient_accumulation=4, **QUIET)
    assert same(whole, parts, 1e-6)


class Stopped(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop_after", [3, 4, 7])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, stop_after, optimizer):
    path = tmp_path / "run.safetensors"
    given = {"epochs": 3, "optimizer": optimizer, "lr": 0.05, "checkpoint_every": 2, "warmup": 0.5}
    straight = finetune(net(), loader(generator=torch.Generator()), **given, **QUIET)
    calls = 0

    def stop(*_):
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        finetune(net(), loader(generator=torch.Generator()), checkpoint=path, progress=stop, **given)
    assert path.exists()
    resumed = finetune(net(), loader(generator=torch.Generator()), checkpoint=path, **given, **QUIET)
    assert same(straight, resumed)
    # It is finished now: the same call again returns at once.
    assert same(straight, finetune(net(), [samples()] * 3, checkpoint=path, progress=stop, **given))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    finetune(net(), loader(), checkpoint=path, **QUIET)
    with pytest.raises(FxpruneError, match=r"differs in epochs \(there 1, here 2\), seed .*resume=False"):
        finetune(net(), loader(), checkpoint=path, epochs=2, seed=3, **QUIET)
    other = net()
    other[0].bias.data += 1
    with pytest.raises(FxpruneError, match="differs in weights"):
        finetune(other, loader(), checkpoint=path, **QUIET)
    finetune(other, loader(), checkpoint=path, resume=False, **QUIET)


class Poison:
    """Batches whose images grow without bound from some batch on: finite, but no loss of theirs is."""

    def __init__(self, start):
        self.start, self.step = start, 0

    def __len__(self):
        return 3

    def __iter__(self):
        for _ in range(3):
            self.step += 1
            images, labels = samples(12)
            yield images * (1e38 if self.step > self.start else 1), labels


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_good_model(tmp_path):
    one_epoch = finetune(net(norm=False), Poison(99), epochs=3, schedule="constant", **QUIET, on_epoch=lambda e: None)
    path = tmp_path / "run.safetensors"
    given = {"epochs": 3, "schedule": "constant", "checkpoint": path}
    with pytest.raises(
        DivergenceError, match=r"loss became (nan|inf) in epoch 3 .*weights of the end of epoch 2.*lower `lr`"
    ) as caught:
        finetune(net(norm=False), Poison(7), **given, **QUIET)
    assert all(bool(value.isfinite().all()) for value in caught.value.model.state_dict().values())
    assert not same(caught.value.model, net(norm=False))
    # Repaired data, the same call: it goes on from the end of epoch 2.
    assert same(finetune(net(norm=False), Poison(99), **given, **QUIET), one_epoch)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": [samples()[0]]}, "no labels and there is no teacher"),
        ({"data": [(samples()[0], samples()[1] + 1)]}, "label 3: class numbers run from 0 to 2"),
        ({"data": []}, "yields no batch"),
        ({"data": [(samples()[0][:, :, 0], samples()[1])]}, r"does not run on data of shapes \(48, 1, 6\)"),
        ({"data": [(samples()[0] * math.nan, samples()[1])]}, "NaN"),
        ({"optimizer": "lion"}, "optimizer .='lion'. is not known"),
        ({"schedule": "step"}, "schedule .='step'. is not known"),
        ({"epochs": 0}, "epochs .=0. must be positive"),
        ({"gradient_accumulation": 0}, "gradient_accumulation .=0. must be positive"),
        ({"distill_weight": 1.5}, "distill_weight .=1.5. must be from 0 to 1"),
        ({"lr": -1.0}, "lr .=-1.0. must be at least 0"),
        ({"mixed_precision": "fp7"}, "mixed_precision .='fp7'. cannot be used"),
        ({"pruned": net().requires_grad_(False)}, "no parameter that requires a gradient"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(given, message):
    with pytest.raises(FxpruneError, match=message):
        finetune(**{"pruned": net(norm=False), "data": loader(), **given, **QUIET})


def test_mixed_precision_trains_and_the_next_run_may_have_another():
    model = net(norm=False)
    mixed = finetune(model, loader(), lr=0.05, mixed_precision="bf16", **QUIET)
    full = finetune(model, loader(), lr=0.05, mixed_precision="no", **QUIET)
    assert not same(mixed, full)
    assert same(mixed, full, 0.01)
    assert all(value.dtype == torch.float32 for value in mixed.parameters())
    copy.deepcopy(mixed)


def test_a_loss_of_ones_own_and_an_evaluation_are_called():
    seen = []
    images, _ = samples()
    targets = torch.ones(48, 3)
    trained = finetune(
        net(norm=False),
        [(images, targets)] * 4,
        loss=lambda outputs, labels: (outputs - labels).square().mean(),
        epochs=15,
        lr=0.1,
        evaluate=lambda model: float(not model.training and (model(images) - 1).abs().mean()),
        on_epoch=seen.append,
        **QUIET,
    )
    assert seen[-1].evaluation < 0.3 * seen[0].evaluation
    with torch.no_grad():
        assert seen[-1].evaluation == pytest.approx(float((trained(images) - 1).abs().mean()), rel=1e-4)


@pytest.mark.parametrize("data", [loader(), [(samples()[0], samples()[1])]], ids=["a loader", "a list"])
def test_a_compensated_model_is_trained_on_few_samples_with_care(data):
    model = net().eval()
    few, _ = samples()
    pruned = fxprune.prune(model, 0.5, data=[few], depth=False, progress=False)
    assert fxprune.provenance.pruning_notes(pruned).compensated
    bare = fxprune.prune(model, 0.5, data=[few], compensate=False, progress=False)
    rates = []
    settings = {**QUIET, "on_epoch": lambda epoch: rates.append(epoch.lr), "schedule": "constant"}
    careful = finetune(pruned, data, **settings)
    assert torch.equal(careful.get_buffer("1.running_mean"), pruned.get_buffer("1.running_mean"))
    for trained, before in (
        (finetune(pruned, data, batch_norm="train", **settings), pruned),
        (finetune(bare, data, **settings), bare),
        (finetune(pruned, [(few, samples()[1])] * 21, **settings), pruned),
    ):
        assert not torch.equal(trained.get_buffer("1.running_mean"), before.get_buffer("1.running_mean"))
    assert rates == pytest.approx([0.001, 0.001, 0.01, 0.01])


def _work(rank, port, path):
    import os

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    teacher = net(norm=False)
    trained = finetune(
        net(norm=False), loader(12), teacher=teacher, epochs=2, lr=0.05, gradient_accumulation=2, **QUIET
    )
    torch.save(trained.state_dict(), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_work, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    alone = finetune(
        net(norm=False), loader(12), teacher=net(norm=False), epochs=2, lr=0.05, gradient_accumulation=2, **QUIET
    )
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert max(float((state[key] - value).abs().max()) for key, value in alone.state_dict().items()) < 1e-5
