"""Pictures inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def png(image: np.ndarray) -> str:
    """A (c, h, w) uint8 picture, c = 1 or 3, as a data URI."""
    stream = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
