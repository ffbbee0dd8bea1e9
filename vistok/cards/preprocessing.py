"""How published evaluations prepare images, shared by the cards."""

from __future__ import annotations

CENTER_256_BICUBIC = {
    "image_size": 256,
    "crop": "center",
    "interpolation": "bicubic",
    "range": [0.0, 1.0],
    "note": "shorter edge to 256 (antialias), centre crop; no mean or std",
}
