"""Quantizers: latents to ids and back, computed in fp32 whatever the model's dtype."""

from vistok.quantizers.base import Quantized, Quantizer
from vistok.quantizers.fsq import FiniteScalarQuantizer
from vistok.quantizers.gaussian import DiagonalGaussian, GaussianBottleneck
from vistok.quantizers.vq import VectorQuantizer

__all__ = [
    "DiagonalGaussian",
    "FiniteScalarQuantizer",
    "GaussianBottleneck",
    "Quantized",
    "Quantizer",
    "VectorQuantizer",
]
