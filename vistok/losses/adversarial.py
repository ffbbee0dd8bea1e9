"""The adversarial half of tokenizer training: patch discriminators, hinge losses, and LeCam averages.

Every discriminator takes images in [0, 1] and says of how many ``parts`` (real and reconstructed ones)
the batch is put together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.distributed import all_mean

_SLOPE = 0.1
_GAN_SLOPE = 0.2
_LOGIT_GRID = 16
_BLUR = (1.0, 3.0, 3.0, 1.0)


class BlurDownsample(nn.Module):
    """A fixed 4-tap blur with stride 2 on every channel (Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486)."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor(_BLUR)
        kernel = taps[:, None] * taps
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)], zero-padded as TensorFlow's SAME does."""
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // 2) - 1) * 2 + len(_BLUR) - size, 0)
            pads += [total // 2, total - total // 2]
        channels = x.shape[1]
        return F.conv2d(F.pad(x, pads), self.kernel.expand(channels, -1, -1, -1), stride=2, groups=channels)


class PatchDiscriminator(nn.Module):
    """Images to a 16x16 map of logits, high for real ones; the discriminator of the TiTok line.

    Args:
        base_channels: channels of the first stage.
        num_stages: stages, each halving the size.
    """

    def __init__(self, base_channels: int = 128, num_stages: int = 3) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, base_channels, 5, padding=2)
        self.stages = nn.ModuleList()
        channels = base_channels
        for stage in range(num_stages):
            out = base_channels * 2**stage
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, out, 3, padding=1),
                    BlurDownsample(),
                    nn.GroupNorm(32, out),
                    nn.LeakyReLU(_SLOPE),
                )
            )
            channels = out
        self.to_logits = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.LeakyReLU(_SLOPE), nn.Conv2d(channels, 1, 5, padding=2)
        )

    def forward(self, images: Tensor, *, parts: int = 1) -> Tensor:
        """[B, 3, H, W] -> logits [B, 1, 16, 16]; every image is normalised by itself, whatever the parts."""
        x = F.leaky_relu(self.conv_in(images), _SLOPE)
        for stage in self.stages:
            x = stage(x)
        return self.to_logits(F.adaptive_max_pool2d(x, _LOGIT_GRID))


class PatchGan(nn.Module):
    """The discriminator of pix2pix (arXiv:1611.07004) as VQGAN's training uses it, with batch norm.

    Its logits depend on the batch, so real and reconstructed images are normalised apart, and with
    several processes each normalises its own share.

    Args:
        base_channels: channels of the first convolution.
        num_layers: convolutions that halve the size.
    """

    def __init__(self, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(_GAN_SLOPE)]
        channels = base_channels
        for layer in range(1, num_layers + 1):
            out = base_channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(_GAN_SLOPE),
            ]
            channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, images: Tensor, *, parts: int = 1) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> logits [B, 1, h, w].

        Args:
            images: as large as 2^(num_layers + 1) pixels a side, at least.
            parts: equal parts of the batch that are normalised apart.
        """
        return torch.cat([self.layers(2.0 * part - 1.0) for part in images.chunk(parts)])


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the mean hinge of each side: logits of any shape -> a scalar (Geometric GAN, arXiv:1705.02894)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


class LeCam(nn.Module):
    """Holds the discriminator's outputs near their running averages (LeCam, arXiv:2104.03310).

    Args:
        decay: of the averages, which start at 0.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_real", torch.zeros(1))
        self.register_buffer("mean_fake", torch.zeros(1))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty [1] for logits of any shape; uses the averages as they were, then updates them."""
        # The value over all processes, the gradient of this one: averaged, it is the joint batch's.
        real_mean, fake_mean = (mean + all_mean(mean.detach()) - mean.detach() for mean in (real.mean(), fake.mean()))
        penalty = F.relu(real_mean - self.mean_fake).square() + F.relu(self.mean_real - fake_mean).square()
        with torch.no_grad():
            self.mean_real.lerp_(real_mean.detach().float(), 1.0 - self.decay)
            self.mean_fake.lerp_(fake_mean.detach().float(), 1.0 - self.decay)
        return penalty
