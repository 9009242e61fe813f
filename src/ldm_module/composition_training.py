"""Training the model of compositions, before the denoiser."""

import logging
import math
import time

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from src.data.dataset import CrystalDataset
from src.ldm_module.compositions import CompositionModel, Compositions
from src.ldm_module.conditions import drop

logger = logging.getLogger(__name__)

BATCH_SIZE = 128
MAX_STEPS = 20_000  # for very large data sets
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARMUP = 0.05  # share of the steps


def fit_compositions(
    model: CompositionModel, dataset: CrystalDataset, epochs: int, dropout: float
) -> None:
    """Train a model of compositions on those of a data set.

    It takes a minute or two for ten thousand crystals. All processes of a distributed run train the
    same model. More epochs make compositions more often valid and more often known ones.

    Args:
        model: trained in place.
        dataset: the training set.
        epochs: at most `MAX_STEPS` steps are taken.
        dropout: how often conditions are hidden, see `drop`.

    Raises:
        UserError: for a cell with more atoms than the model knows, or an unknown condition.
    """
    start_time = time.monotonic()
    compositions, values = _read(model, dataset)
    for condition, known in zip(model.conditions.each, values, strict=True):
        condition.fit(known)
    per_epoch = math.ceil(len(dataset) / BATCH_SIZE)
    steps = min(epochs * per_epoch, MAX_STEPS)
    device = compositions.elements.device
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # dropout
        was_training = model.training
        model.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        for step in track(range(steps), "Learning compositions", transient=True):
            if step % per_epoch == 0:
                order = torch.randperm(len(dataset), generator=generator)
            start = step % per_epoch * BATCH_SIZE
            part = order[start : start + BATCH_SIZE].to(device)
            uniform = torch.rand(len(part), 1 + len(values), generator=generator).to(device)
            asked = drop([known[part] for known in values], uniform, dropout)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _schedule(step, steps)
            with torch.enable_grad():
                chosen = Compositions(*(each[part] for each in compositions)).trimmed()
                model(chosen, asked).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.train(was_training).requires_grad_(False)
    model.is_trained.fill_(1.0)
    logger.info("Learned compositions in %d steps, %.0f s", steps, time.monotonic() - start_time)


def _schedule(step: int, steps: int) -> float:
    """Of the learning rate: a linear rise, then half a cosine down to 0."""
    return min(1.0, (step + 1) / (WARMUP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _read(model: CompositionModel, dataset: CrystalDataset) -> tuple[Compositions, list[Tensor]]:
    """The compositions of all crystals, and the values (B, width) of each condition."""
    model.check(dataset.num_atoms)
    device = model.is_trained.device
    parts, values = [], []
    for part in torch.arange(len(dataset)).split(4096):
        batch = dataset.batch(part).to(device)
        parts.append(Compositions.of(batch, model.max_num_elements))
        values.append(model.conditions.values(batch))
    length = max(part.elements.shape[1] for part in parts)
    padded = [[F.pad(x, (0, length - x.shape[1])) for x in part] for part in parts]
    together = Compositions(*(torch.cat(each) for each in zip(*padded, strict=True)))
    return together, [torch.cat(each) for each in zip(*values, strict=True)]
