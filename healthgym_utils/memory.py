"""The latent memory of Health Gym v2.

A generator that starts every patient from the same noise can forget the rare
ones. v2 lets it start from a patient that was there: an autoencoder turns
real sequences into latent vectors, a buffer keeps their means, and noise is
scattered around one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from healthgym_utils.runtime import check_choice
from healthgym_utils.schema import Schema

ENCODERS = ("moments", "vae", "projection")
DOWNSAMPLING = ("replacement", "reservoir")


class LatentMemory(nn.Module):
    """An autoencoder, a buffer of patients' latent means, and a scale.

    The defaults do what the published v2 does; the other choices are there
    to be compared with it.

    Parameters
    ----------
    schema : Schema
        Its embedding width is the width that the autoencoder reads.
    latent, hidden : int
        Width of the latent vectors, which is that of the generator's noise,
        and of the encoder's layers.
    capacity : int
        Most entries that the buffer holds.
    encoder : {"moments", "vae", "projection"}
        ``"moments"`` is deterministic, with the moments of each batch of
        latents drawn towards 0 and 1; the published posts call it a VAE.
        ``"vae"`` is one: Kingma & Welling (2014), reparametrised, with a
        divergence for each month of each patient. ``"projection"`` is a
        fixed random map that learns nothing.
    decoder_variance : float, optional
        What the decoder of ``"vae"`` may be off by. Half the embedding
        width if not given, which v2's weights imply, and with which a VAE
        codes nothing: no direction of the embedding varies as much.
    downsampling : {"replacement", "reservoir"}
        What to keep when the buffer overflows: a random draw with
        replacement, or a uniform sample of all patients ever seen (Vitter
        1985, algorithm R).
    buffer : bool
        Without it every patient starts from the mean of the latents, 0.

    Raises
    ------
    ValueError
        If a choice is none of those above, or a decoder variance is given
        that is not positive or belongs to another encoder than the VAE.
    """

    def __init__(
        self,
        schema: Schema,
        latent: int = 128,
        hidden: int = 128,
        capacity: int = 10_000,
        encoder: str = "moments",
        decoder_variance: float | None = None,
        downsampling: str = "replacement",
        buffer: bool = True,
    ) -> None:
        super().__init__()
        check_choice("encoder", encoder, ENCODERS)
        check_choice("downsampling", downsampling, DOWNSAMPLING)
        if decoder_variance is not None and (
            encoder != "vae" or decoder_variance <= 0
        ):
            raise ValueError(
                'decoder_variance is positive, and for encoder="vae"; got '
                f"{decoder_variance} for {encoder!r}"
            )
        self.encoder, self.downsampling = encoder, downsampling
        self.buffer = buffer
        self.capacity = capacity
        self.arguments = {
            "latent": latent,
            "hidden": hidden,
            "capacity": capacity,
            "encoder": encoder,
            "decoder_variance": decoder_variance,
            "downsampling": downsampling,
            "buffer": buffer,
        }
        width = schema.embedding_width
        # A Gaussian likelihood of `width` numbers, as a weight of their mean.
        self.error_weight = width / 2 / (decoder_variance or width / 2)
        if encoder == "projection":
            fixed = torch.randn(width, latent) / width**0.5
            self.register_buffer("projection", fixed)
        else:
            self.first = nn.Linear(width, hidden)
            self.skip = nn.Linear(width, hidden)
            self.second = nn.Linear(hidden, hidden)
            self.third = nn.Linear(hidden, hidden)
            self.latent = nn.Linear(hidden, latent)
            self.decoder = nn.Linear(latent, width)
        if encoder == "vae":
            self.log_variance = nn.Linear(hidden, latent)
        self.register_buffer("entries", torch.zeros(capacity, latent))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("scale", torch.ones(latent))

    def check(self) -> None:
        """Refuse counts of entries that cannot be, as of a damaged file.

        Raises
        ------
        ValueError
            If more are filled than there is room for, or than were seen.
        """
        filled, seen = int(self.filled), int(self.seen)
        if not 0 <= filled <= min(self.capacity, seen):
            raise ValueError(
                f"a memory of {self.capacity:,} that saw {seen:,} has "
                f"{filled:,} filled"
            )

    def encode(self, embedded: Tensor) -> Tensor:
        """Map (batch, months, embedding width) to (batch, months, latent)."""
        if self.encoder == "projection":
            return embedded @ self.projection
        return self.latent(self._features(embedded))

    def _features(self, embedded: Tensor) -> Tensor:
        x = torch.relu(self.first(embedded) + self.skip(embedded))
        x = torch.relu(self.second(x) + x)
        return torch.relu(self.third(x) + x)

    def loss(self, embedded: Tensor, random: torch.Generator) -> Tensor:
        """Reconstruction error plus the divergence of the latents.

        Parameters
        ----------
        embedded : Tensor, shape (batch, months, embedding width)
            Real rows in the critic's soft embedding, detached.
        random : torch.Generator
            On the CPU; the true VAE draws from it.

        Returns
        -------
        Tensor, shape ()
            Mean squared error (times half the width over the decoder's
            variance), plus the Kullback-Leibler divergence from a
            standard normal, summed over latent dimensions: of the batch's
            moments (``"moments"``), or of each month's own distribution,
            averaged (``"vae"``).
        """
        features = self._features(embedded)
        mean = latent = self.latent(features)
        if self.encoder == "vae":
            log_variance = self.log_variance(features)
            noise = torch.randn(mean.shape, generator=random).to(mean)
            latent = mean + noise * (log_variance / 2).exp()
            divergence = _divergence(mean, log_variance).mean(dim=(0, 1))
        else:
            variance, centre = torch.var_mean(latent, dim=(0, 1), correction=0)
            divergence = _divergence(centre, (variance + 1e-8).log())
        error = (self.decoder(latent) - embedded).square().mean()
        return self.error_weight * error + divergence.sum()

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.encoder != "projection"

    @torch.no_grad()
    def remember(self, embedded: Tensor, random: torch.Generator) -> None:
        """Store each patient's mean latent, and move the running scale.

        Parameters
        ----------
        embedded : Tensor, shape (batch, months, embedding width)
        random : torch.Generator
            On the CPU; decides what stays when the buffer is full.
        """
        latent = self.encode(embedded)
        spread = latent.flatten(0, 1).std(dim=0, correction=0)
        self.scale.copy_((self.scale + spread) / 2)
        if self.buffer:
            means = latent.mean(dim=1)
            if self.downsampling == "reservoir":
                self._store_reservoir(means, random)
            else:
                self._store_replacing(means, random)

    def _store_replacing(self, means: Tensor, random: torch.Generator) -> None:
        """Append; over capacity, draw capacity entries with replacement."""
        rows = torch.cat([self.entries[: self.filled], means])
        if len(rows) > self.capacity:
            kept = torch.randint(len(rows), (self.capacity,), generator=random)
            rows = rows[kept.to(rows.device)]
        self.entries[: len(rows)] = rows
        self.filled.fill_(len(rows))
        self.seen += len(means)

    def _store_reservoir(self, means: Tensor, random: torch.Generator) -> None:
        """Keep each of the n means seen with probability capacity / n."""
        for mean in means:
            self.seen += 1
            place = int(self.seen) - 1
            if place >= self.capacity:
                place = int(torch.randint(place + 1, (), generator=random))
            if place < self.capacity:
                self.entries[place] = mean
        self.filled.copy_(self.seen.clamp(max=self.capacity))

    def draw(self, patients: int, random: torch.Generator) -> Tensor:
        """Draw a remembered mean for each patient, (patients, latent).

        Zeros before anything is remembered, and without a buffer.
        """
        if self.filled == 0:
            return torch.zeros_like(self.scale).expand(patients, -1)
        drawn = torch.randint(int(self.filled), (patients,), generator=random)
        return self.entries[drawn.to(self.entries.device)]

    def shift(self, z: Tensor, random: torch.Generator) -> Tensor:
        """Scatter noise around remembered patients: z * scale + mean.

        Parameters
        ----------
        z : Tensor, shape (batch, months, latent)
        random : torch.Generator
            On the CPU; chooses the means.
        """
        return z * self.scale + self.draw(len(z), random).unsqueeze(1)


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from a standard normal, elementwise."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
