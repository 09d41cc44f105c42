"""What the frozen first layers of a network answer, kept on the disk: many runs over one data set compute it once."""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from fedplatform.learning.models.classifier import Classifier
from fedplatform.learning.models.freezing import has_frozen_statistics

FOLDER = "FEDPLATFORM_FEATURES"
PATIENCE_S = 120.0  # for another process that writes
LOOKED_UP = 500  # scans in one question to the file


@runtime_checkable
class Chain(Protocol):
    """A body that is a chain: each link takes what the one before gives, the first one normalised images."""

    def links(self) -> Sequence[nn.Module]: ...


def frozen_lead(body: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """A chain's first links that training leaves as they are, and the rest; no first ones where no weight is in them.

        >>> from fedplatform.learning.models.classifier import Classifier
    from fedplatform.learning.models.freezing import freeze
        >>> body = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> freeze(body, ["0"])
        >>> [len(part) for part in frozen_lead(body)]
        [2, 1]
    """
    links = [*body] if isinstance(body, nn.Sequential) else list(body.links()) if isinstance(body, Chain) else []
    count = next((place for place, link in enumerate(links) if not _is_constant(link)), len(links))
    has_weights = any(True for link in links[:count] for _ in link.parameters())
    return (links[:count], links[count:]) if has_weights else ([], links)


def _is_constant(link: nn.Module) -> bool:
    """Whether a link gives the same for the same scan, in training too, and goes on doing so."""
    draws = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    for module in link.modules():
        own = [name for name, _ in module.named_buffers(recurse=False)]
        if isinstance(module, draws) or (own and not has_frozen_statistics(module)):
            return False
    return not any(parameter.requires_grad for parameter in link.parameters())


class FrozenFeatures:
    """A classifier whose frozen first links answer from a file, by the bytes of the scan.

    There is one SQLite file in ``folder`` for each set of frozen weights, which several processes may use at a time.
    Each scan is answered by itself, so that its features do not depend on the batch in which it came first: logits are
    those of the classifier up to rounding. A copy of the classifier has none of this.
    """

    def __init__(self, classifier: Classifier, folder: Path) -> None:
        self._normalised = classifier.normalised
        self._constants = (classifier.mean, classifier.std)
        self._lead, self._rest = frozen_lead(classifier.body)
        self._folder = folder
        self._file: sqlite3.Connection | None = None

    def __deepcopy__(self, memo: object) -> None:
        """An export or an attacked copy is of the network alone."""

    def answers(self, images: torch.Tensor) -> bool:
        """Whether these images are answered from the file: not where somebody asks for their gradient."""
        plain = images.device.type == "cpu" and images.dtype == torch.float32 and not images.requires_grad
        return plain and bool(self._lead) and not torch.is_autocast_enabled("cpu")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, c, h, w) in [0, 1]."""
        keys = [sha256(image.tobytes()).digest() for image in images.detach().contiguous().numpy()]
        known = self._read(keys)
        new: dict[bytes, np.ndarray] = {}
        for place, key in enumerate(keys):
            if key not in known and key not in new:
                new[key] = self._answer(images[place : place + 1])
        self._write(new)
        features = torch.from_numpy(np.stack([known[key] if key in known else new[key] for key in keys]))
        answer = features.contiguous(memory_format=torch.channels_last) if features.ndim == 4 else features
        for link in self._rest:
            answer = link(answer)
        return answer

    def _answer(self, image: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            features = self._normalised(image)
            for link in self._lead:
                features = link(features)
        answer: np.ndarray = features[0].contiguous().numpy()
        return answer

    def _opened(self) -> sqlite3.Connection:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = self._folder / f"{self._digest()}.sqlite"
            # On Ray a hospital trains in one thread and answers in another, one at a time.
            file = sqlite3.connect(place, timeout=PATIENCE_S, check_same_thread=False)
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = OFF")  # whatever is lost can be computed again
            file.execute("CREATE TABLE IF NOT EXISTS features (scan BLOB PRIMARY KEY, answer BLOB)")
            self._file = file
        return self._file

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        known: dict[bytes, np.ndarray] = {}
        for start in range(0, len(keys), LOOKED_UP):
            some = keys[start : start + LOOKED_UP]
            asked = f"SELECT scan, answer FROM features WHERE scan IN ({','.join('?' * len(some))})"
            for scan, answer in self._opened().execute(asked, some):
                known[scan] = np.load(io.BytesIO(answer), allow_pickle=False)
        return known

    def _write(self, new: Mapping[bytes, np.ndarray]) -> None:
        if new:
            with self._opened() as file:
                file.executemany(
                    "INSERT OR IGNORE INTO features VALUES (?, ?)",
                    [(key, _packed(value)) for key, value in new.items()],
                )

    def _digest(self) -> str:
        """Of the frozen links as they are: layers, settings and weights, and what pixels they get."""
        seen = sha256()
        for value in self._constants:
            seen.update(value.numpy().tobytes())
        for link in self._lead:
            seen.update(str(link).encode())
            for name, value in link.state_dict().items():
                seen.update(name.encode() + value.contiguous().numpy().tobytes())
        return seen.hexdigest()[:32]


def _packed(answer: np.ndarray) -> bytes:
    """An array with its shape and type."""
    packed = io.BytesIO()
    np.save(packed, answer, allow_pickle=False)
    return packed.getvalue()


def remember(network: nn.Module) -> None:
    """Have a classifier answer from the files in the folder that ``FEDPLATFORM_FEATURES`` names, if any does."""
    folder = os.environ.get(FOLDER)
    if folder and isinstance(network, Classifier):
        network.features = FrozenFeatures(network, Path(folder))
