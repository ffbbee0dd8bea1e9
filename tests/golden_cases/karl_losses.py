"""KARL's training cases: the two runs of an iteration, their losses and gradients, in both stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vistok.convert import recognise, titok
from vistok.convert.key_map import KeyMap, Rule
from vistok.losses.adaptive import AdaptiveLoss, AdaptiveLossConfig
from vistok.losses.halting import ErrorSampler
from vistok.models.karl import ERRORS, NUM_NEAR_LOSSLESS, Karl

from golden_cases import GoldenCase, Result
from golden_cases.karl import build, read_input

_DISCRIMINATOR_KEYS = KeyMap([Rule("main.{}.*", "layers.{}.*")])
_LPIPS = "perceptual_loss."
_LATENT_LOSS = AdaptiveLoss(AdaptiveLossConfig(stage="latents", pretrained=False))


def run_losses(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a training case, with each image's own masks and with mixed ones as published."""
    for prefix, mixed in (("official/", True), ("per_image_mask/", False)):
        computed = _losses(case, mixed=mixed)
        for step in case.steps:
            for output in step["outputs"]:
                name = output["name"]
                if name.startswith(prefix) and name.removeprefix(prefix) in computed:
                    yield case.compare(step, name, computed[name.removeprefix(prefix)])


def _losses(case: GoldenCase, *, mixed: bool) -> dict[str, Tensor | float]:
    loaded: Karl = build(case)
    model = Karl(replace(loaded.config, mixed_masks=mixed))
    model.load_state_dict(loaded.state_dict())
    finetuning = case.config["train_stage"] == "full_finetuning"
    if not finetuning:
        model.freeze_base()
    model.train()
    images, count = read_input(case, "image"), read_input(case, "token_count")
    loss = _make_loss(case, count) if finetuning else _LATENT_LOSS
    conditions, noise = read_input(case, "epsilon_index").long(), read_input(case, "vae_noise")
    outputs = model(images, count=count, conditions=conditions, noise=noise)
    total, terms = loss.generator(outputs, images, 0, last_layer=model.last_layer())
    total.backward()
    sampler = ErrorSampler(ERRORS, start=NUM_NEAR_LOSSLESS)
    sampler.update(outputs["error"])
    computed = _named(terms, count, model.config.budget, _gan_weight(case))
    computed |= {"total": total, "loss_sampling_prob_after": sampler.probabilities}
    computed |= _gradient_norms(case, model)
    if finetuning:
        value, total = _discriminator_pass(loss, outputs, images, terms)
        recorded = [output["name"] for step in case.steps for output in step["outputs"]]
        passes = {name.partition("/")[2] for name in recorded if "disc_pass/train/disc_loss_" in name}
        computed |= dict.fromkeys(passes, value) | {"disc_pass_total": total}
    return computed


def _gan_weight(case: GoldenCase) -> float:
    """The adversary's, which is recorded beside the losses."""
    weights = [
        float(case.tensor(output["tensor"]))
        for step in case.steps
        for output in step["outputs"]
        if "train/discriminator_weight_" in output["name"]
    ]
    return weights[0] if weights else 0.2


def _make_loss(case: GoldenCase, count: int) -> AdaptiveLoss:
    """The loss of an iteration with this many tokens, whose discriminator comes with a perceptual network of its own."""
    config = AdaptiveLossConfig(
        stage="pixels",
        reconstruction="l1",
        perceptual="lpips",
        perceptual_weight=1.0,
        adversarial_weight=_gan_weight(case),
        num_discriminators=case.config["max_rollout_iters"],
        tokens_per_discriminator=case.config["num_init_latent_tokens"],
        pretrained=False,
    )
    loss = AdaptiveLoss(config).train()
    for index, discriminator in enumerate(loss.discriminator):
        state = case.state(f"gan_losses.{index}.discriminator.")
        state = {key: value.long() if key.endswith("tracked") else value for key, value in state.items()}
        discriminator.load_state_dict(_DISCRIMINATOR_KEYS.to_ours(state))
    state = case.state(f"gan_losses.{loss.discriminator_index(count)}.{_LPIPS}")
    loss.perceptual.load_state_dict(titok.PERCEPTUAL_KEYS.to_ours({f"lpips.{key}": x for key, x in state.items()}))
    return loss


def _named(terms: dict[str, Tensor], count: int, budget: int, gan_weight: float) -> dict[str, Tensor]:
    """Our terms under the recordings' names, in which T and the run are written."""
    out = {}
    for number, tokens in ((0, count), (1, budget)):
        own = {name.removesuffix(f"_{number}"): value for name, value in terms.items() if name.endswith(f"_{number}")}
        suffix = f"{tokens}_0" if number == 0 else f"{tokens}"
        out[f"latent_token_active_loss_bce_{suffix}"] = own["active"]
        if "halt" in own:
            out[f"latent_token_halt_loss_bce_{tokens}"] = own["halt"]
        if "quantizer" in own:
            out[f"quantization_loss_{tokens}"] = own["quantizer"]
        if "code" in own:
            out[f"code_loss_{tokens}_{number}"] = own["code"]
        if "nll" in own:
            out[f"nll_loss_{tokens}_{number}"] = own["nll"]
        if "reconstruction" in own:
            # What is recorded as reconstruction has the perceptual term inside.
            seen = own["reconstruction"] + own["perceptual"]
            recorded = {
                "total_loss": seen + own["adversarial"],
                "nll_loss": seen,
                "rec_loss": seen,
                "p_loss": own["perceptual"],
                "d_weight": own["balance"],
                "disc_factor": torch.tensor(1.0),
                "g_loss": own["adversarial"] / own["balance"],
                "discriminator_weight": torch.tensor(gan_weight),
            }
            out |= {f"train/{name}_{count}_{number}": value for name, value in recorded.items()}
    return out


def _gradient_norms(case: GoldenCase, model: Karl) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    key_map = recognise(case.shapes).key_map(model.config)
    names = {output["name"].rpartition("grad_norm/")[2] for step in case.steps for output in step["outputs"]}
    ours = {name: key_map.name_to_ours(name) for name in names & case.shapes.keys()}
    return {f"grad_norm/{name}": parameters[mine].grad.norm() for name, mine in ours.items()}


def _discriminator_pass(
    loss: AdaptiveLoss, outputs: dict[str, Any], images: Tensor, terms: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The discriminator's loss, and the recorded total, which has the halting and quantiser terms inside; nothing learns from these there."""
    index = loss.discriminator_index(outputs["count"])
    fakes = [run["reconstruction"].detach() for run in outputs["runs"]]
    logits = loss.discriminator(torch.cat([images, *fakes]), index=index, parts=1 + len(fakes))
    value, _ = loss.discriminate(logits.chunk(1 + len(fakes)))
    others = sum(term for name, term in terms.items() if name.rstrip("01") in ("active_", "halt_", "quantizer_"))
    return value, value + others
