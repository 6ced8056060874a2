"""Features of picture files: read, turned into features in batches, and kept for the next time.

The cache is keyed by the content of a picture and the extractor's fingerprint, so that a changed picture, changed
weights or another preprocessing never meet old features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xxhash
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from common.cores import usable_cores
from common.files import atomic_write
from common.pictures import DecodeError, decode
from eval.subjects.extractors import Extractor


@dataclass
class Found:
    """Features of picture files.

    Args:
        features: name of the extractor -> file -> (D,) float32.
        unreadable: file -> why it could not be read.
    """

    features: dict[str, dict[Path, Tensor]]
    unreadable: dict[Path, str] = field(default_factory=dict)


class FeatureCache:
    """Features by the hash of a picture's content.

    They lie in files of one batch each that are never changed, so that processes need no lock.

    Args:
        folder: where they lie; None: only in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._rows = folder, dict[str, Tensor]()
        for file in sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else ():
            # one that is damaged is as good as absent: its pictures are done again
            with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="pt") as opened:
                self._rows.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Tensor:
        return self._rows[key]

    def add(self, keys: Sequence[str], features: Tensor) -> None:
        """Keep (N, D) features under N keys."""
        rows = {key: row.clone().contiguous() for key, row in zip(keys, features.float(), strict=True)}
        self._rows.update(rows)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = xxhash.xxh3_64(" ".join(sorted(rows)).encode()).hexdigest()
            atomic_write(self._folder / f"{name}.safetensors", save(rows))


def open_caches(extractors: Mapping[str, Extractor], folder: Path | None) -> dict[str, FeatureCache]:
    """A cache for each extractor; one without a fingerprint, and without a folder every one, is kept in memory only.

    Args:
        extractors: name -> extractor.
        folder: holds a folder for each fingerprint.
    """
    return {
        name: FeatureCache(folder / extractor.fingerprint if folder is not None and extractor.fingerprint else None)
        for name, extractor in extractors.items()
    }


def features_of(
    paths: Sequence[Path],
    extractors: Mapping[str, Extractor],
    *,
    caches: Mapping[str, FeatureCache] | None = None,
    batch_size: int = 32,
    description: str = "features",
) -> Found:
    """Features of picture files by every extractor.

    Args:
        paths: the files; a picture is turned upright, and transparency laid on white.
        extractors: name -> extractor.
        caches: name of an extractor -> its cache, from `open_caches`; None: nothing is kept.
        batch_size: pictures at once.
        description: of the progress bar.

    Returns:
        The features of all files that could be read, and why the others could not.
    """
    kept = open_caches(extractors, None) if caches is None else caches
    found = Found({name: {} for name in extractors})
    bar = tqdm(total=len(paths), desc=description, unit=" pictures", disable=None, leave=False)
    with bar, ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            keys = dict(zip(batch, pool.map(_hash, batch), strict=True))
            missing = [path for path, key in keys.items() if any(key not in cached for cached in kept.values())]
            images: dict[Path, Image.Image] = {}
            for path, image in zip(missing, pool.map(_open, missing), strict=True):
                if isinstance(image, str):
                    found.unreadable[path] = image
                else:
                    images[path] = image
            for name, extractor in extractors.items():
                _extract(extractor, kept[name], {keys[path]: image for path, image in images.items()})
                for path, key in keys.items():
                    if path not in found.unreadable:
                        found.features[name][path] = kept[name][key]
            bar.update(len(batch))
    return found


def _extract(extractor: Extractor, cached: FeatureCache, images: Mapping[str, Image.Image]) -> None:
    new = {key: image for key, image in images.items() if key not in cached}
    if new:
        features = extractor.features(list(new.values()))
        assert features.ndim == 2, features.shape
        assert len(features) == len(new), (len(features), len(new))
        cached.add(list(new), features.detach().to("cpu", torch.float32))


def _hash(path: Path) -> str:
    try:
        return xxhash.xxh3_128(path.read_bytes()).hexdigest()
    except OSError:
        return f"unreadable {path}"  # `_open` says why


def _open(path: Path) -> Image.Image | str:
    try:
        return Image.fromarray(decode(path.read_bytes()))
    except OSError as error:
        return error.strerror or type(error).__name__
    except DecodeError as error:
        return str(error)
