"""Golden cases of KARL: layouts, encoding and decoding, and both stages of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.convert import recognise
from vistok.models.base import key_report
from vistok.models.karl import Karl
from vistok.models.ldm_kl import LdmKl
from vistok.registry import model_class

from golden_cases import GoldenCase, Result, fill_image

# Float error may flip an id only where the nearest and the second nearest code are so close.
ID_MARGIN = 1e-4


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case."""
    name_tensors(case)
    operations = {step["op"] for step in case.steps}
    if not case.steps:
        yield run_layout(case)
    elif operations == {"training_losses"}:
        from golden_cases.karl_losses import run_losses

        yield from run_losses(case)
    elif operations <= {"base_encode_decode", "encode", "decode"}:
        yield from _run_inference(case)


# What ALIT's cases share.


def name_tensors(case: GoldenCase) -> None:
    """These cases write an index without brackets, and keep inputs beside the steps."""
    for step in case.steps:
        for output in step["outputs"]:
            output["index"] = f"[{output['slice']}]" if output.get("slice") else None


def read_input(case: GoldenCase, name: str) -> Any:
    """An input of a case: a tensor, a transformed image, or a number; None where it has none."""
    spec = case.data["inputs"].get(name)
    if spec is None:
        return None
    if "value" in spec:
        return spec["value"]
    if "tensor" in spec:
        return case.tensor(spec["tensor"])
    image = fill_image(**spec["fill_image"])
    factor, _, rest = spec.get("transform", "x").rpartition("*x")
    offset = float(rest) if rest and factor else 0.0
    return torch.from_numpy(np.float32(factor or 1.0) * image + np.float32(offset))


def run_layout(case: GoldenCase) -> Result:
    """Names and shapes in both directions, and the configuration."""
    source = recognise(case.shapes)
    config = source.read_config(case.shapes, case.config)
    with torch.device("meta"):
        model = model_class(source.family)(config)
    key_map = source.key_map(config)
    published = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    own = model.state_dict()
    report = key_report(own, key_map.to_ours(published)) or key_report(published, key_map.to_published(own))
    values = sum(tensor.numel() for tensor in own.values())
    if not report and values != case.data.get("num_elements", values):
        report = f"{values} values, recorded {case.data['num_elements']}"
    told = source.wrap_config(config)
    if not report and source.read_config(case.shapes, told) != config:
        report = "our configuration -> published -> ours changed it"
    differing = [key for key, value in told.items() if key in case.config and case.config[key] != value]
    if not report and differing:
        report = f"the published configuration has other {', '.join(differing)}"
    return Result("layout", 0.0, 0.0, not report, report)


def build(case: GoldenCase) -> Any:
    """The model of a case with its weights; the way back to the published names is checked too."""
    state = {key: tensor for key, tensor in case.state().items() if not key.startswith("gan_losses.")}
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    source = recognise(shapes)
    config = source.read_config(shapes, case.config)
    model = model_class(source.family)(config)
    key_map = source.key_map(config)
    model.load_weights(key_map.to_ours(state), where=case.name)
    back = key_map.to_published(model.state_dict())
    if back.keys() != state.keys() or not all(torch.equal(back[key], state[key]) for key in state):
        raise AssertionError("official -> ours -> official changed names or values")
    if source.read_config(shapes, source.wrap_config(config)) != config:
        raise AssertionError("our configuration -> published -> ours changed it")
    return model.eval()


def compare_ids(case: GoldenCase, step: dict[str, Any], name: str, ours: Tensor, margins: str) -> Result:
    """Exact wherever float error cannot have flipped an id."""
    theirs, margin = case.tensor(f"out/{name}"), case.tensor(f"out/{margins}")
    wrong = int(((ours != theirs) & (margin > ID_MARGIN)).sum())
    note = f"{wrong} of {theirs.numel()} ids differ" if wrong else ""
    return Result(name, float(wrong), float(wrong > 0), wrong == 0, note, {"rtol": 0.0, "atol": 0.0})


def code_margins(z: Tensor, rows: Tensor) -> Tensor:
    """How much farther the second nearest row is than the nearest, in squared distance."""
    nearest = torch.cdist(z.double(), rows.double()).square().topk(2, dim=-1, largest=False).values
    return nearest[..., 1] - nearest[..., 0]


# KARL.


@torch.no_grad()
def _run_inference(case: GoldenCase) -> Iterator[Result]:
    model = build(case)
    assert isinstance(model, Karl)
    images, noise = read_input(case, "image"), read_input(case, "vae_noise")
    for step in case.steps:
        computed = {"base_encode_decode": _base, "encode": _encode, "decode": _decode}[step["op"]](
            case, model, images, noise
        )
        names = {output["name"] for output in step["outputs"]}
        for name in (output["name"] for output in step["outputs"]):
            margins = {"base_indices": "base_margin", "indices": "token_margin"}.get(name, "")
            if name not in computed:
                continue
            if margins in names:
                yield compare_ids(case, step, name, computed[name], margins)
            else:
                yield case.compare(step, name, computed[name])


def _base(case: GoldenCase, model: Karl, images: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
    codec = model.base.codec
    if isinstance(codec, LdmKl):
        mean, logvar = codec.moments(images)
        return {"base_moments": torch.cat([mean, logvar], dim=1), "base_reconstruction": codec.decode_map(mean)}
    latents = model.base.encode(images)
    goal = model.base.targets(images, latents)
    grid = model.base.grid_size
    return {
        "base_latent": latents.transpose(1, 2).unflatten(2, (grid, grid)),
        "base_indices": goal.ids,
        "base_margin": code_margins(latents, codec.quantizer.codebook),
        "base_reconstruction": codec.decode_latents(goal.codes),
    }


def _hidden(case: GoldenCase, model: Karl, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """The encoder's outputs and its halting logits."""
    conditions = model.error_index(read_input(case, "epsilon"), len(images))
    latents = model.base.encode(images, noise=noise)
    hidden = model.encoder(images, latents, conditions, read_input(case, "max_tokens"))
    return hidden, model.halting_logits(hidden, images, conditions)


def _encode(case: GoldenCase, model: Karl, images: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
    hidden, logits = _hidden(case, model, images, noise)
    kept = model.keep_mask(logits)
    z = model.latents(hidden)
    computed = {
        "latents": hidden,
        "z": z,
        "halt_logit": logits,
        "halt_prob": logits.sigmoid(),
        "keep_mask": kept.long(),
        "num_kept": kept.sum(dim=1),
    }
    if model.quantizer is not None:
        out = model.quantizer(z)
        unit = torch.nn.functional.normalize(z, dim=-1)
        rows = torch.nn.functional.normalize(model.quantizer.codebook, dim=-1)
        computed |= {"quant": out.latents, "indices": out.ids, "token_margin": code_margins(unit, rows)}
    return computed


def _decode(case: GoldenCase, model: Karl, images: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
    """Through tokens, from which superfluous ones are deleted; and masked, which must be the same."""
    options = {"target_error": read_input(case, "epsilon"), "max_tokens": read_input(case, "max_tokens")}
    tokens = model.encode(images, noise=noise, **options)
    reconstruction = model.decode(tokens, clamp=False)
    hidden, logits = _hidden(case, model, images, noise)
    kept, values = model.keep_mask(logits), model.latents(hidden)
    values = values if model.quantizer is None else model.quantizer(values).latents
    out = model.decoder(values, kept=kept)
    # Tests compare the two more closely, in double precision: these random decoders amplify rounding.
    torch.testing.assert_close(model.base.decode(out), reconstruction, **case.tolerance)
    return {
        "decoder_out": out,
        "reconstruction": reconstruction,
        "l1": (images - reconstruction).abs().flatten(1).mean(dim=1),
    }
