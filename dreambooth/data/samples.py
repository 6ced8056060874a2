"""A subject's pictures → samples → batches, from what lies cached; no picture is decoded in training.

B samples, K rows of a batch (B, or 2 B with prior preservation), C latent channels, h and w latent size, T tokens of a
prompt, D width of its embeddings, P width of the pooled one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
import torch
from torch import Tensor

from dreambooth.data.embeddings import Embeddings
from dreambooth.data.latents import Latents

Sample = dict[str, Tensor]
# In front of the keys of the class sample that rides along.
CLASS = "class_"

_SUBJECT_NOISE, _CLASS_NOISE, _CLASS_ORDER = range(3)


@dataclass(frozen=True)
class Rows:
    """Pictures and their prompts.

    Args:
        latents: of the pictures.
        prompts: one for each picture.
    """

    latents: Latents
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)


class SubjectSamples:
    """The training samples of a subject, indexed by (epoch, index); the same for the same key, whatever the process.

    An epoch is as many passes over the pictures as make whole batches: with five pictures and batches of 4 the last
    batch of a pass would hold one picture, and 500 steps would see 1 250 samples and not 2 000.

    A picture's variants take turns, one after another each time that it is seen. With prior preservation every sample
    brings one class picture along: all of them once, in an order of their own, before one comes again.

    Args:
        subject: its pictures.
        prior: class pictures, None without prior preservation.
        embeddings: of all prompts.
        batch_size: samples of an optimizer step.
        seed: seeds the noise and the order of the class pictures.
    """

    def __init__(
        self, subject: Rows, prior: Rows | None, embeddings: Embeddings, *, batch_size: int, seed: int
    ) -> None:
        self._subject, self._prior, self._embeddings, self._seed = subject, prior, embeddings, seed
        self._length = lcm(len(subject), batch_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample `index` as epoch `epoch` sees it.

        Returns:
            the rows that `Collate` describes, without their first dimension; those of the class picture under the same
            names with `class_` in front.

        Raises:
            UserError: the cache has been removed or damaged meanwhile.
        """
        epoch, index = key
        if not 0 <= index < self._length:
            raise IndexError(index)
        visit, picture = divmod(epoch * self._length + index, len(self._subject))
        sample = self._row(self._subject, picture, visit, _noise_seed(self._seed, epoch, index, _SUBJECT_NOISE))
        if self._prior is not None:
            visit, place = divmod(epoch * self._length + index, len(self._prior))
            order = np.random.default_rng([self._seed, visit, _CLASS_ORDER]).permutation(len(self._prior))
            noise_seed = _noise_seed(self._seed, epoch, index, _CLASS_NOISE)
            row = self._row(self._prior, int(order[place]), visit, noise_seed)
            sample |= {CLASS + name: value for name, value in row.items()}
        return sample

    def _row(self, rows: Rows, picture: int, visit: int, noise_seed: int) -> Sample:
        return {
            **rows.latents.read(picture, visit % rows.latents.variants(picture)),
            **self._embeddings.read(rows.prompts[picture]),
            "noise_seed": torch.tensor(noise_seed),
        }


def _noise_seed(seed: int, epoch: int, index: int, stream: int) -> int:
    """A number of 63 bits that tells nothing about its neighbours'."""
    return int(np.random.SeedSequence([seed, epoch, index, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Collate:
    """Samples -> a batch."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Batch samples.

        Args:
            samples: B of `SubjectSamples`, all with a class picture or all without.

        Returns:
            of K rows, those of the subject first; with prior preservation row B + i is the class picture that rides
            along with row i, and has its own picture, `time_ids`, prompt and noise:

            - `mean`, `std` (K, C, h, w) float32: the posterior of the VAE in the UNet's units (scaled and shifted).
              Latents are drawn from it anew each time.
            - `time_ids` (K, 6) float32: original height and width, crop top and left, target height and width.
            - `embeds` (K, T, D), `pooled` (K, P) float32: the prompt's. Where text encoders are trained instead
              `input_ids_1`, `input_ids_2` (K, T) int64, of the first and the second tokenizer, padded.
            - `noise_seed` (K,) int64, not negative: seeds all that is random about the row (the sample of the
              posterior, the noise, the timestep), so that a batch, its parts and any number of processes see the same.
            - `labels` (B,) int64: 0; one for each sample, not for each row. The engine makes them -100 in a batch that
              only fills an empty share.
        """
        names = [name for name in samples[0] if not name.startswith(CLASS)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in names}
        if CLASS + "mean" in samples[0]:
            for name in names:
                rows = torch.stack([sample[CLASS + name] for sample in samples])
                batch[name] = torch.cat([batch[name], rows])
        batch["labels"] = torch.zeros(len(samples), dtype=torch.int64)
        return batch
