"""What the page can do, without the page: from what its controls say to pictures and lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vistok.data import load_images
from vistok.errors import VistokError
from vistok.generate.base import Generator
from vistok.metrics.pixel import psnr
from vistok.models.base import Tokenizer
from vistok.report.grid import image_grid, to_image
from vistok.search import search
from vistok.token_layout import TokenLayout
from vistok.tokens import Tokens

METHODS = ("one draw", "best of N", "beam")
_SIDE = 384
_BEAM_WIDTH = 4


@dataclass(frozen=True)
class Shown:
    """Pictures of one size for the page, and what there is to say about them."""

    picture: Image.Image
    text: str


class Studio:
    """Holds the models; every method is one control's work.

    Args:
        ordered: an ordered tokenizer.
        adaptive: an adaptive one; None leaves counting out.
        generator: writes the ordered tokenizer's tokens; None leaves generation out.
    Raises:
        VistokError: a tokenizer that is not ordered, or not adaptive.
    """

    def __init__(
        self, ordered: Tokenizer, adaptive: Tokenizer | None = None, generator: Generator | None = None
    ) -> None:
        if not ordered.ordered:
            raise VistokError(
                f"{ordered.name} is not ordered: a slider of tokens needs a tokenizer whose prefixes decode"
            )
        if adaptive is not None and not adaptive.adaptive:
            raise VistokError(f"{adaptive.name} is not adaptive: it cannot be told an error")
        self.ordered, self.adaptive, self.generator = ordered, adaptive, generator
        self._last: tuple[bytes, Tensor, Tokens] | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """The generator's classes."""
        return tuple(getattr(self.generator.config, "class_names", ())) if self.generator is not None else ()

    @torch.no_grad()
    def reconstruct(self, picture: Image.Image, tokens: int) -> Shown:
        """The picture from its first tokens, beside itself."""
        image, code = self._encoded(picture)
        tokens = min(max(1, int(tokens)), self.ordered.num_tokens)
        cut = code.truncate(tokens)
        decoded = self.ordered.decode(cut).clamp(0.0, 1.0)
        error = float((decoded - image).abs().mean())
        bits = float(cut.bits()[0])
        stored = TokenLayout.of(cut).record_bytes([tokens])[0]
        height, width = image.shape[-2:]
        text = (
            f"**{tokens} tokens**: {bits:.0f} bits, {bits / (height * width):.3f} a pixel; {stored} bytes in a .vtk file. "
            f"PSNR **{float(psnr(decoded, image)):.2f} dB**, mean absolute error {error:.4f}."
        )
        return Shown(_pair(decoded[0], image[0]), text)

    @torch.no_grad()
    def count(self, picture: Image.Image, error: float) -> Shown:
        """The picture from as many tokens as the wanted error needs, beside itself."""
        if self.adaptive is None:
            raise VistokError("there is no adaptive tokenizer here; start with --adaptive NAME")
        image = load_images(picture, like=self.adaptive).to(self.adaptive.device)
        code = self.adaptive.encode(image, target_error=float(error))
        decoded = self.adaptive.decode(code).clamp(0.0, 1.0)
        got = float((decoded - image).abs().mean())
        text = (
            f"**{int(code.lengths[0])} of {self.adaptive.num_tokens} tokens**, found in one pass. "
            f"PSNR {float(psnr(decoded, image)):.2f} dB, mean absolute error {got:.4f} (wanted {float(error):g})."
        )
        return Shown(_pair(decoded[0], image[0]), text)

    def draw(
        self, prompt: str, category: str | None, method: str, budget: int, seed: int, *, steps: bool = True
    ) -> Iterator[Shown]:
        """A picture for a text or a category; for a beam, first what it looked like after each step.

        Args:
            prompt: where it is empty, the category counts.
            category: a class name.
            method: one of ``METHODS``.
            budget: draws of best-of-N; candidates of a beam.
            seed: the same one gives the same picture again.
            steps: give the steps too, not the result alone.
        """
        if self.generator is None:
            raise VistokError("there is no generator here; start with --generator NAME")
        if method not in METHODS:
            raise VistokError(f"method is one of {', '.join(METHODS)}; got {method!r}")
        condition = prompt.strip() or category or None
        options = {"seeds": [int(seed)]}
        if method == "beam":
            result = search(
                self.generator,
                self.ordered,
                [condition],
                method="beam",
                beam_width=_BEAM_WIDTH,
                candidates_per_beam=max(1, int(budget) // _BEAM_WIDTH),
                **options,
            )
        else:
            draws = 1 if method == "one draw" else max(1, int(budget))
            result = search(self.generator, self.ordered, [condition], budget=draws, **options)
        cost = result.cost
        told = (
            f"score {float(result.scores[0]):.1f} nats (log-likelihood); {cost.token_forwards} token forwards, "
            f"{cost.verifier_calls} candidates scored, {cost.decoder_passes} pictures decoded, {cost.seconds:.1f} s"
        )
        if steps and method == "beam":
            for number in range(len(result.history)):
                best = result.best_at(number)
                length = int(best.lengths[0])
                picture = self.ordered.decode(best).clamp(0.0, 1.0)[0]
                yield Shown(_large(picture), f"step {number + 1} of {len(result.history)}: {length} tokens")
        yield Shown(_large(result.images[0].clamp(0.0, 1.0)), told)

    def _encoded(self, picture: Image.Image) -> tuple[Tensor, Tokens]:
        """The picture as the tokenizer sees it, and all its tokens; a moved slider does not encode again."""
        key = picture.mode.encode() + repr(picture.size).encode() + picture.tobytes()
        if self._last is None or self._last[0] != key:
            image = load_images(picture, like=self.ordered).to(self.ordered.device)
            self._last = key, image, self.ordered.encode(image)
        return self._last[1], self._last[2]


def _large(image: Tensor) -> Image.Image:
    """Enlarged by a whole factor, so that pixels stay square."""
    picture = to_image(image)
    factor = max(1, _SIDE // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _pair(decoded: Tensor, original: Tensor) -> Image.Image:
    scale = max(1, _SIDE // max(original.shape[-2:]))
    return image_grid([[decoded.cpu(), original.cpu()]], column_titles=["decoded", "original"], scale=scale)
