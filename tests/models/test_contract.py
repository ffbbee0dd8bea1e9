"""What every registered tokenizer promises, on a tiny configuration of each kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import BASE, KINDS, VQGAN, condition, make, pictures

from vistok.errors import CheckpointError, VistokError
from vistok.hub import create_model, from_pretrained
from vistok.models.titok import TiTok, TiTokConfig
from vistok.registry import get_card, list_models, model_class


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_shapes_types_and_ranges(kind: str) -> None:
    model = make(kind)
    tokens = model.encode(pictures(3))
    assert (len(tokens), tokens.num_tokens) == (3, model.num_tokens)
    assert tokens.is_continuous == model.continuous
    if not model.continuous:
        assert (
            tokens.ids.dtype == torch.int64 and 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < tokens.vocab_size
        )
    images = model.decode(tokens, condition=condition(model, 3))
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    assert 0.0 <= float(images.min()) and float(images.max()) <= 1.0


def test_deterministic_and_independent_of_the_batch(kind: str) -> None:
    model, images = make(kind), pictures(3)
    text = condition(model, 3)
    whole = model.encode(images)
    assert model.encode(images) == whole
    decoded = model.decode(whole, condition=text)
    for row in range(3):
        part = model.encode(images[row : row + 1])
        if not model.continuous:
            assert part == whole[row]
        one = model.decode(whole[row], condition=None if text is None else text[row : row + 1])
        torch.testing.assert_close(one[0], decoded[row], rtol=1e-4, atol=1e-5)


def test_saving_and_loading_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    model, images = make(kind), pictures(2)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config == model.config
    assert again.weight_hash() == model.weight_hash()
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    assert again.encode(images) == model.encode(images)


def test_loading_is_strict_and_names_what_is_wrong(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    state = model.state_dict()
    first, second, *_ = state
    state["extra.tensor"] = torch.zeros(2)
    state[second] = torch.zeros(1, 1, 1, 1, 1)
    del state[first]
    with pytest.raises(CheckpointError) as error:
        model.load_weights(state)
    for name in (first, second, "extra.tensor", "missing", "unexpected", "mis-shaped"):
        assert name in str(error.value)


def test_gradients_reach_every_parameter(kind: str) -> None:
    model = make(kind).train()
    kwargs = {"text": condition(model, 2)} if model.conditional else {}
    for seed in range(4):  # several tail drops; zero-initialised heads open in the first step
        if isinstance(model, TiTok):
            kwargs["generator"] = torch.Generator().manual_seed(seed)
        out = model(pictures(2), **kwargs)
        loss = out["reconstruction"].square().mean() + sum(v.mean() for k, v in out.items() if k.startswith("loss_"))
        (loss + out.get("kl", torch.zeros(1)).mean()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing


def test_ids_do_not_depend_on_the_weights_type(kind: str) -> None:
    model = make(kind)
    if model.continuous:
        pytest.skip("continuous tokens have no ids")
    ids = model.encode(pictures(2)).ids
    latents = model.quantizer.lookup(ids)
    again = model.to(torch.bfloat16).quantizer(latents).ids
    exact = not isinstance(model.config, TiTokConfig) or model.config.quantizer == "fsq"
    # Rows of a codebook in bf16 are other rows; what must hold there is that the nearest row is still found.
    assert torch.equal(again, ids) if exact and model.family == "titok" else (again == ids).float().mean() > 0.9


def test_prefixes_can_be_decoded_exactly_where_tokens_are_ordered(kind: str) -> None:
    model = make(kind)
    tokens = model.encode(pictures(3))
    cut = tokens.truncate([1, model.num_tokens, 2])
    if not model.ordered:
        with pytest.raises(VistokError, match="fixed length"):
            model.decode(cut, condition=condition(model, 3))
        return
    images = model.decode(cut)
    for row in range(3):
        torch.testing.assert_close(images[row], model.decode(cut[row])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(images[0], model.decode(tokens)[0])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.rand(2, 3, 48, 48), r"got \[2, 3, 48, 48\]"),
        (torch.rand(2, 1, 32, 32), r"got \[2, 1, 32, 32\]"),
        (torch.rand(3, 32, 32), r"got \[3, 32, 32\]"),
        (torch.rand(0, 3, 32, 32), r"got \[0, 3, 32, 32\]"),
        (torch.full((1, 3, 32, 32), float("nan")), "nan"),
        (torch.rand(1, 3, 32, 32) * 255, "values from"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide"),
        ("cat.jpg", "load_images"),
    ],
)
def test_bad_images_are_explained(kind: str, bad: object, words: str) -> None:
    with pytest.raises(VistokError, match=words):
        make(kind).encode(bad)


def test_tokens_of_another_model_are_refused() -> None:
    vq, fsq, gaussian = make("vq_pixels"), make("fsq_ordered"), make("gaussian")
    tokens = vq.encode(pictures(1))
    with pytest.raises(VistokError, match="codebook"):
        fsq.decode(tokens)
    with pytest.raises(VistokError, match="continuous"):
        gaussian.decode(tokens)
    with pytest.raises(VistokError, match="family"):
        make("maskgit_vqgan").decode(tokens)
    with pytest.raises(VistokError, match="text features"):
        make("vq_text").decode(make("vq_text").encode(pictures(1)))
    with pytest.raises(VistokError, match="no condition"):
        vq.decode(tokens, condition=torch.zeros(1, 5, 7))


def test_key_names_are_frozen() -> None:
    """Saved models must stay loadable: these names may not change."""
    keys = set(make("vq_legacy").state_dict())
    wanted = {
        "encoder.latent_tokens",
        "encoder.transformer.blocks.0.attn.qkv.weight",
        "to_latents.weight",
        "quantizer.codebook",
        "decoder.latent_embed.weight",
        "to_logits.2.bias",
        "pixel_codebook",
        "pixel_decoder.up.0.0.conv1.weight",
    }
    assert wanted <= keys


def test_stage_one_says_how_to_see_images() -> None:
    torch.manual_seed(0)
    model = TiTok(replace(BASE, head="proxy", vqgan=replace(VQGAN, codebook_size=64))).eval()
    tokens = model.encode(pictures(1))
    with pytest.raises(VistokError, match="with_pixel_decoder"):
        model.decode(tokens)
    full = model.with_pixel_decoder(make("maskgit_vqgan"))
    assert full.encode(pictures(1)) == tokens.replace(model="")
    assert full.decode(tokens).shape == (1, 3, 32, 32)


def test_frozen_encoder_stays_put() -> None:
    model = make("vq_legacy").train()
    model.freeze_encoder()
    out = model(pictures(2))
    out["reconstruction"].mean().backward()
    assert all(p.grad is None for p in (*model.encoder.parameters(), *model.quantizer.parameters()))
    assert model.decoder.mask_token.grad is not None and float(out["loss_commitment"]) == 0.0
    assert not model.encoder.training and model.decoder.training


def test_gradient_checkpointing_changes_nothing() -> None:
    grads = []
    for enabled in (False, True):
        model = make("vq_legacy").train()
        model.set_gradient_checkpointing(enabled)
        model(pictures(2))["reconstruction"].square().mean().backward()
        grads.append(model.encoder.patch_embed.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", list_models("*"))
def test_every_card_builds_on_the_meta_device(name: str) -> None:
    card, model = get_card(name), create_model(name, device="meta")
    with torch.device("meta"):
        again = create_model(name)
    for made in (model, again):
        assert all(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
    assert card.licence and (card.kind == "generator" or (card.paper and model.num_tokens > 0))


def test_unknown_names_and_options_are_explained() -> None:
    with pytest.raises(VistokError, match=r"titok_l32\.imagenet"):
        create_model("titok_l32")
    with pytest.raises(VistokError, match="num_tokens"):
        create_model("titok_tiny_32.emoji", num_token=3)
    with pytest.raises(VistokError, match="cannot build the family"):
        model_class("rars")
    with pytest.raises(VistokError, match="no weights"):
        create_model("titok_tiny_32.emoji", pretrained=True)
