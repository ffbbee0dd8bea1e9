"""The page: gradio's controls over a ``Studio``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from vistok.data import open_source
from vistok.errors import MissingExtraError, VistokError
from vistok.serve.studio import METHODS, Shown, Studio

_EXAMPLES = (("photos:", 4), ("emoji:", 4))
_INTRO = """# vistok
A picture as a list of tokens, coarse to fine. Everything runs on this machine."""


def build_page(studio: Studio) -> Any:
    """gradio's ``Blocks``; ``launch`` it.

    Raises:
        MissingExtraError: gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise MissingExtraError("the page needs gradio: pip install 'vistok[demo]'") from error

    def checked(work: Callable[..., Any]) -> Callable[..., Any]:
        """Errors that people can mend are shown to them."""

        def run(*values: Any) -> Any:
            try:
                return work(*values)
            except VistokError as error:
                raise gr.Error(str(error)) from error

        return run

    def reconstruct(picture: Image.Image | None, tokens: float) -> tuple[Any, str]:
        return _of(None if picture is None else studio.reconstruct(picture, int(tokens)))

    def count(picture: Image.Image | None, error: float) -> tuple[Any, str]:
        return _of(None if picture is None else studio.count(picture, error))

    def draw(
        prompt: str | None, category: str | None, method: str, budget: float | None, seed: float | None
    ) -> Iterator[tuple[Any, str]]:
        try:  # a field that was emptied gives None
            for shown in studio.draw(prompt or "", category, method, int(budget or 1), int(seed or 0)):
                yield _of(shown)
        except VistokError as error:
            raise gr.Error(str(error)) from error

    examples = [picture for spec, number in _EXAMPLES for picture in _some(spec, number)]
    with gr.Blocks(title="vistok") as page:
        gr.Markdown(_INTRO)
        with gr.Tab("Tokenize and cut"):
            with gr.Row():
                with gr.Column():
                    picture = gr.Image(type="pil", label="picture", value=examples[0], height=320)
                    gr.Examples(examples, inputs=picture, label="held-out pictures")
                with gr.Column():
                    tokens = gr.Slider(1, studio.ordered.num_tokens, value=64, step=1, label="tokens")
                    shown = gr.Image(label="decoded beside original", show_label=False, interactive=False)
                    told = gr.Markdown()
            wires = {"inputs": [picture, tokens], "outputs": [shown, told], "show_progress": "hidden"}
            picture.change(checked(reconstruct), **wires)
            tokens.change(checked(reconstruct), **wires)
            page.load(checked(reconstruct), **wires)
        if studio.adaptive is not None:
            with gr.Tab("As many tokens as it needs"):
                with gr.Row():
                    with gr.Column():
                        other = gr.Image(type="pil", label="picture", value=examples[0], height=320)
                        gr.Examples(examples, inputs=other, label="held-out pictures")
                    with gr.Column():
                        error = gr.Slider(0.02, 0.3, value=0.1, step=0.01, label="wanted mean absolute error")
                        counted = gr.Image(label="decoded beside original", show_label=False, interactive=False)
                        said = gr.Markdown()
                wires = {"inputs": [other, error], "outputs": [counted, said], "show_progress": "hidden"}
                other.change(checked(count), **wires)
                error.change(checked(count), **wires)
                page.load(checked(count), **wires)
        if studio.generator is not None:
            with gr.Tab("Generate and search"), gr.Row():
                with gr.Column():
                    prompt = gr.Textbox(value="crying cat face", label="prompt (empty: the category counts)")
                    category = gr.Dropdown(list(studio.categories), value=None, label="category")
                    method = gr.Radio(list(METHODS), value=METHODS[1], label="search")
                    budget = gr.Slider(1, 64, value=16, step=1, label="budget: draws, or candidates of a beam's step")
                    seed = gr.Number(value=0, precision=0, label="seed")
                    button = gr.Button("Generate", variant="primary")
                with gr.Column():
                    drawn = gr.Image(label="picture", show_label=False, interactive=False)
                    cost = gr.Markdown()
            inputs = [prompt, category, method, budget, seed]
            button.click(draw, inputs=inputs, outputs=[drawn, cost])
    return page


def _of(shown: Shown | None) -> tuple[Any, str]:
    return (None, "") if shown is None else (shown.picture, shown.text)


def _some(spec: str, number: int) -> list[Image.Image]:
    """Held-out pictures to begin with."""
    source = open_source(spec, split="val")
    return [source.image(index * (len(source) // number)).convert("RGB") for index in range(number)]
