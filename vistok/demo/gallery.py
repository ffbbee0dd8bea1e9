"""The gallery: ``docs/gallery.md`` and its pictures, all of it made from the models that come with vistok."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vistok.data import open_source
from vistok.demo.parts import some_images
from vistok.demo.pictures import ERRORS, beams, coarse_to_fine, searched, tokens_needed
from vistok.demo.shipped import ADAPTIVE, ORDERED, PROMPTS, WRITER
from vistok.hub import from_pretrained
from vistok.metrics.curve import evaluate_curve
from vistok.report.curve import curve_picture
from vistok.report.grid import save_image

_BUDGETS = (1, 4, 16)
_LENGTHS = (16, 32, 64, 128, 256)
_PAGE = """\
# Gallery

Made by `python eval/gallery.py`, from the weights that come with vistok (`assets/weights`; 64x64 pixels, trained on a CPU). All
reconstructed pictures are held out: nobody trained on them.

## Coarse to fine

`vistok_ordered`: from the first 1, 4, 16, 64 and all 256 tokens; stored bytes in brackets.

![photographs, coarse to fine](images/gallery_photos.png)

![emoji, coarse to fine](images/gallery_emoji.png)

## As many tokens as the picture needs

`vistok_adaptive` is told a mean absolute error, and gives each picture the tokens that it takes, in one pass. On the pictures
below: {counts}.

![token counts](images/gallery_counts.png)

## Pictures from texts, with and without search

`vistok_writer` writes the first 64 tokens for a text, or for one of ten categories. Below one draw: the likeliest of 4 and of 16 draws of
the same seeds, by the generator's own likelihood. It learned 1,693 emoji by heart, so what it draws well are these: a text that it
knows comes out at the first draw, a category leaves more to search, and of texts that combine anew ("red cat") it makes smudges.

![samples](images/gallery_samples.png)

Beam search judges prefixes: the best beam after 1, 2, 4, ... tokens, with its log-likelihood.

![beams](images/gallery_beams.png)

## At equal bytes

The 22 held-out photographs, beside what image codecs reach, also at reduced sizes. A dash: no picture fits.

![rate and distortion](images/gallery_curve.png)

{table}
"""


def make_gallery(out: str | Path) -> Path:
    """Write ``out/gallery.md`` and ``out/images/gallery_*.png``; the page."""
    out = Path(out)
    (out / "images").mkdir(parents=True, exist_ok=True)
    ordered, adaptive, writer = (from_pretrained(name) for name in (ORDERED, ADAPTIVE, WRITER))

    def save(name: str, picture: Image.Image) -> None:
        save_image(picture, out / "images" / f"gallery_{name}.png")

    sources = {name: open_source(f"{name}:", split="val") for name in ("photos", "emoji")}
    for name, source in sources.items():
        save(name, coarse_to_fine(ordered, some_images(source, 7 if name == "photos" else 5, like=ordered)))
    mixed = torch.cat([some_images(source, 4, like=adaptive) for source in sources.values()])
    needed = tokens_needed(adaptive, mixed)
    save("counts", needed.picture)
    means = needed.tokens.double().mean(dim=1).tolist()
    counts = ", ".join(f"{mean:.1f} tokens at {error:g}" for error, mean in zip(ERRORS, means, strict=True))
    samples, _ = searched(writer, ordered, PROMPTS, _BUDGETS, seed=1)
    save("samples", samples)
    save("beams", beams(writer, ordered, PROMPTS[:4], seed=1)[0])
    curve = evaluate_curve({ORDERED: ordered}, sources["photos"], perceptual="auto", progress=False)
    save("curve", curve_picture(curve))
    page = out / "gallery.md"
    page.write_text(_PAGE.format(counts=counts, table=equal_bytes_table(curve)), encoding="utf-8")
    return page


def equal_bytes_table(curve: dict[str, Any]) -> str:
    """Markdown: at each number of tokens, the tokenizer and what codecs reach in at most its bytes."""
    first = curve["tokenizers"][0]
    metrics = [key for key in ("psnr", "lpips", "lite0_distance") if key in first["points"][0]]
    names = {"psnr": "PSNR, dB", "lpips": "LPIPS", "lite0_distance": "lite0 distance"}
    codecs = [codec["name"] for codec in curve["codecs"]]
    head = ["tokens (bytes)"] + [f"{who}, {names[m]}" for m in metrics for who in ("vistok", *codecs)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for place, point in enumerate(first["points"]):
        if point["tokens"] not in _LENGTHS:
            continue
        cells = [f"{point['tokens']:.0f} ({point['stored_bytes']:.0f})"]
        for metric in metrics:
            cells.append(f"{point[metric]:.2f}" if metric == "psnr" else f"{point[metric]:.3f}")
            for codec in curve["codecs"]:
                equal = codec["equal_bytes"][place]
                value, reached = equal.get(metric), equal["reached"]
                shown = "-" if value is None else f"{value:.2f}" if metric == "psnr" else f"{value:.3f}"
                share = "" if value is None or reached == equal["images"] else f" ({reached} of {equal['images']})"
                cells.append(shown + share)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(doc: str) -> int:
    """Read the command line of ``eval/gallery.py``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of gallery.md and images/ (%(default)s)")
    print(make_gallery(parser.parse_args().out))
    return 0
