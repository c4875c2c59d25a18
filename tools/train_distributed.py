"""Train v3 on several processes, on a cohort that is streamed from Parquet.

    torchrun --nproc-per-node 2 tools/train_distributed.py cohort.parquet \
        --epochs 2 --checkpoint v3.safetensors

Processes share each batch (DistributedDataParallel), by gloo on CPUs and by
NCCL on GPUs. An update is that of one process with the whole batch. Rank 0
saves before the first epoch and after each; the same command goes on after an
interruption.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parquet_stream import (
    GROUP_ROWS,
    ParquetCohort,
    ParquetPatients,
    fit_preprocessor,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import healthgym_utils as hg
from healthgym_utils.diffusion import DiffusionSettings
from healthgym_utils.unet import ResBlock1D


class Batch:
    """Which rows of the batch at hand are this process's.

    Attributes
    ----------
    patients : int
        Of all processes.
    mine : slice
        The rows of this one.
    weight : float
        Its share of the months, times the number of processes: gradients
        are averaged over processes, and the mean over months is wanted.
    """

    patients: int = 0
    mine: slice = slice(0)
    weight: float = 1.0

    def agree(self, lengths: Tensor, device: torch.device) -> None:
        """Tell all processes how much this one has, and ask them."""
        own = torch.tensor([len(lengths), int(lengths.sum())], device=device)
        sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, own)
        patients, months = torch.stack(sizes).T.tolist()
        start = sum(patients[: dist.get_rank()])
        self.patients = sum(patients)
        self.mine = slice(start, start + len(lengths))
        if not len(lengths):
            # All wait for each other's backward pass. Who has no patient left
            # computes with the first row, which is empty here, at weight 0.
            self.mine = slice(0, 1)
        share = int(lengths.sum()) / max(1, sum(months))
        self.weight = len(sizes) * share


class SharedDropout(nn.Module):
    """Draw what falls out for the whole batch, and take one's own rows.

    Parameters
    ----------
    share : float
        Of values set to 0 in training.
    batch : Batch
    """

    def __init__(self, share: float, batch: Batch) -> None:
        super().__init__()
        self.share = share
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of x, shape (own rows, ...)."""
        if not self.training or not self.share:
            return x
        kept = x.new_empty((self.batch.patients, *x.shape[1:]))
        kept.bernoulli_(1 - self.share).div_(1 - self.share)
        return x * kept[self.batch.mine]


class Diffusion(hg.Diffusion):
    """Health Gym v3, a training step of which several processes share.

    Every process draws steps, noise, jitter and dropout of the whole batch,
    which is cheap beside the network, and computes its own rows. So the
    number of processes changes no draw. The name is that of the model it
    is: checkpoints of one are checkpoints of the other.
    """

    def share(self) -> None:
        """Join the other processes, and start from rank 0's weights.

        Raises
        ------
        ValueError
            If the settings blend noises, which is drawn within the loss.
        """
        if self.settings.noise_blend:
            raise ValueError(
                "noise_blend is drawn for one's own rows only, after which "
                "processes no longer draw alike; set it to False"
            )
        self.batch = Batch()
        for block in self.network.modules():
            if isinstance(block, ResBlock1D):
                share = self.settings.dropout
                block.dropout = SharedDropout(share, self.batch)
        self.parallel = DistributedDataParallel(self.network)

    def train_step(self, real: Tensor, lengths: Tensor) -> dict[str, float]:
        """Update the network once, with the rows of all processes.

        Parameters
        ----------
        real : Tensor, shape (own rows, months, schema.width)
        lengths : Tensor of int, shape (own rows,)

        Returns
        -------
        dict
            Means over the whole batch; empty if no process has a row.
        """
        self.batch.agree(lengths, self.device)
        patients = self.batch.patients
        if not patients:
            return {}
        start = self.batch.mine.start
        rows = slice(start, start + len(lengths))
        # The rows of others stay empty; draws do not depend on them.
        whole = real.new_zeros((patients, *real.shape[1:]))
        whole[rows] = real
        months = lengths.new_full((patients,), real.shape[1])
        months[rows] = lengths
        # DistributedDataParallel averages gradients in the backward pass, so
        # that clipping and Adam, which come after it, see the average.
        plain, self.network = self.network, self.parallel
        try:
            record = super().train_step(whole, months)
        finally:
            self.network = plain
        return self._mean(record)

    def losses(
        self,
        x0: Tensor,
        mask: Tensor,
        statics: Tensor,
        t: Tensor,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of one's own rows, weighted by months."""
        mine = self.batch.mine
        own = (part[mine] for part in (x0, mask, statics, t, noise))
        weight = self.batch.weight
        return {k: weight * loss for k, loss in super().losses(*own).items()}

    def _update_average(self) -> None:
        """Keep the running mean where it is saved."""
        if dist.get_rank() == 0:
            super()._update_average()

    def _mean(self, record: dict[str, float]) -> dict[str, float]:
        values = torch.tensor(list(record.values()), device=self.device)
        dist.all_reduce(values)
        values = values / dist.get_world_size()
        return dict(zip(record, values.tolist(), strict=True))


def fit(
    model: Diffusion,
    data: ParquetPatients,
    batch_size: int,
    epochs: int,
    path: str | os.PathLike,
    workers: int = 0,
) -> None:
    """Train until so many epochs have been done in all, and save each.

    The history has a record an epoch, with means over its updates: one an
    update would outgrow a checkpoint's header.

    Parameters
    ----------
    model : Diffusion
        That shares its steps.
    data : ParquetPatients
        Of this rank.
    batch_size : int
        Of all processes together, a multiple of their number.
    epochs : int
        Global: a model resumed at 1 and told 3 does 2 more.
    path : path
        Where rank 0 saves; folders are made. It saves at once, so that a
        wrong place costs no epoch.
    workers : int
        Processes that read for each rank; if 0, it reads itself.

    Raises
    ------
    ValueError
        If batch or row groups cannot be dealt out, or the model was trained
        on other data or in another way.
    OSError
        If there is no saving at the path.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    check_shares(len(data.cohort), batch_size, workers)
    identify(model, data, batch_size)
    if rank == 0 and model.epoch >= epochs:
        print(
            f"nothing to do: {path} is at epoch {model.epoch} already, and "
            f"asked for is epoch {epochs}",
            flush=True,
        )
    elif rank == 0:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    while model.epoch < epochs:
        data.set_epoch(model.epoch)
        loader = DataLoader(data, batch_size // ranks, num_workers=workers)
        patients, seconds = train_epoch(model, loader, data.months)
        if rank == 0:
            model.save(path)
            print(
                f"epoch {model.epoch}: {patients:,} patients in "
                f"{model.history[-1]['updates']:,} updates and "
                f"{seconds:.1f} s, mean loss {model.history[-1]['loss']:.3f}",
                flush=True,
            )
        dist.barrier()  # nobody reads on before the epoch is safe


def check_shares(row_groups: int, batch_size: int, workers: int) -> None:
    """Refuse what cannot be dealt out to all processes; raises as `fit`."""
    ranks = dist.get_world_size()
    if batch_size < 1 or batch_size % ranks:
        raise ValueError(
            f"a batch of {batch_size} cannot be dealt out to {ranks} processes"
        )
    readers = ranks * max(1, workers)
    if row_groups < readers:
        raise ValueError(
            f"{row_groups} row groups cannot be dealt out to {readers} "
            f"readers, {max(1, workers)} for each of {ranks} processes: some "
            "would have nobody, and batches be smaller than asked for. Write "
            "the file with smaller row groups, as with to_parquet(..., "
            f"row_group_size={GROUP_ROWS:_}), or start fewer readers"
        )


def identify(model: Diffusion, data: ParquetPatients, batch_size: int) -> None:
    """Note what a new model is trained on; refuse to resume on another.

    Raises
    ------
    ValueError
        Naming the choice that differs.
    """
    fingerprint = [None]
    if dist.get_rank() == 0:
        fingerprint = [data.cohort.fingerprint()]
    dist.broadcast_object_list(fingerprint)
    if model.fingerprint not in ("", *fingerprint):
        raise ValueError(
            f"this model was trained for {model.epoch} epochs on other data; "
            "resume with the same files, or start a new model"
        )
    (model.fingerprint,) = fingerprint
    choices = {
        "batch_size": batch_size,
        "months": data.months,
        "buffer": data.buffer,
        "seed": data.seed,
    }
    trained = model.provenance.setdefault("training", choices)
    for name, choice in choices.items():
        if trained[name] != choice:
            raise ValueError(
                f"this model was trained for {model.epoch} epochs with "
                f"{name} {trained[name]}, and {choice} is asked for; resume "
                "with the same, or start a new model"
            )


def train_epoch(
    model: Diffusion, loader: DataLoader, months: int
) -> tuple[int, float]:
    """Train on all patients of all processes, and note it in the model.

    Returns
    -------
    int, float
        How many patients there were, and the seconds that they took.
    """
    nothing = (
        torch.zeros(0, months, model.schema.width),
        torch.zeros(0, dtype=torch.int64),
    )
    started = time.perf_counter()
    batches = iter(loader)
    statics: Counter[tuple[float, ...]] = Counter()
    sums: defaultdict[str, float] = defaultdict(float)
    patients = updates = 0
    while True:
        real, lengths = next(batches, nothing)
        record = model.train_step(real, lengths)
        if not record:
            break
        for name, value in record.items():
            sums[name] += value
        updates += 1
        patients += model.batch.patients
        first = real[:, 0, model.static_columns]
        statics.update(map(tuple, first.tolist()))
    model.epoch += 1
    facts = {"epoch": model.epoch, "length": months, "updates": updates}
    means = {name: value / updates for name, value in sums.items()}
    model.history.append(facts | means)
    model.joint = counted(statics, model)
    seconds = time.perf_counter() - started
    model.seconds += seconds
    return patients, seconds


def counted(
    statics: Counter[tuple[float, ...]], model: Diffusion
) -> tuple[Tensor, Tensor]:
    """Add up which statics all processes saw, as ``Diffusion.joint``."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, statics)
    whole = sum(parts, Counter())
    rows = torch.tensor(sorted(whole)).reshape(len(whole), -1)
    counts = torch.tensor([whole[key] for key in sorted(whole)])
    return rows, counts


def prepared(
    cohort: ParquetCohort, path: Path, device: torch.device, seed: int
) -> tuple[Diffusion, hg.Preprocessor]:
    """Load what an interrupted training left, or start a new one."""
    if path.exists():
        model = Diffusion.load(path, cohort.schema, device)
    else:
        settings = DiffusionSettings(seed=seed)
        model = Diffusion(cohort.schema, settings, device)
        fitted = [None]
        if dist.get_rank() == 0:
            fitted = [fit_preprocessor(cohort, seed=seed).to_dict()]
        dist.broadcast_object_list(fitted)
        model.provenance = {"scalings": fitted[0]["scalings"]}
    scalings = model.provenance["scalings"]
    prep = hg.Preprocessor.from_dict(
        {"schema": cohort.schema.to_dict(), "scalings": scalings}
    )
    model.share()
    return model, prep


def main() -> None:
    """Parse the command line, join the others, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="Parquet, in order")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--batch-size", type=int, default=64, help="of all processes together"
    )
    parser.add_argument("--months", type=int, default=60)
    parser.add_argument("--buffer", type=int, default=4096, help="patients")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("v3-distributed.safetensors")
    )
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        cohort = ParquetCohort(options.files, hg.ART_SCHEMA)
        model, prep = prepared(
            cohort, options.checkpoint, device, options.seed
        )
        data = ParquetPatients(
            cohort,
            prep,
            options.months,
            options.buffer,
            options.seed,
            dist.get_rank(),
            dist.get_world_size(),
        )
        fit(
            model,
            data,
            options.batch_size,
            options.epochs,
            options.checkpoint,
            options.workers,
        )
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
