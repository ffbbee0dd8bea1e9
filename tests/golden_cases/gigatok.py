"""Golden cases of GigaTok: tokenizers of both layouts, layouts by name, and the losses of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vistok.convert import recognise
from vistok.convert.gigatok import DISCRIMINATOR_KEYS
from vistok.convert.key_map import Source
from vistok.convert.titok import PERCEPTUAL_KEYS
from vistok.errors import CheckpointError
from vistok.hub import empty_model
from vistok.losses.adversarial import PatchGan
from vistok.losses.tokenizer import TokenizerLoss, TokenizerLossConfig
from vistok.models.base import key_report
from vistok.models.gigatok import GigaTok, GigaTokConfig
from vistok.tokens import Tokens

from golden_cases import GoldenCase, Result, _apply_index

# Ids may differ only where the two nearest rows are nearer to each other than this (the recordings' own rule).
_MARGIN = 1e-4
# Recordings compare pixels of [-1, 1], and vistok's are of [0, 1].
_PIXEL_SCALE = {"l2": 4.0, "l1": 2.0}


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case that vistok can compute."""
    if "model_cls" not in case.config.get("model", {}) or not case.config["model"]["model_cls"].startswith("VQVit"):
        from golden_cases.gpt import run as run_generator

        yield from run_generator(case)
        return
    if not case.steps:
        yield _run_layout(case)
    elif any(step["op"] == "training_losses" for step in case.steps):
        yield from _run_losses(case)
    else:
        yield from _run_inference(case)


def _read(case: GoldenCase, shapes: dict[str, tuple[int, ...]]) -> tuple[Source, GigaTokConfig]:
    source = recognise(shapes)
    overrides = case.config.get("overrides", {})
    options = {"image_size": overrides.get("image_size"), "sizes": overrides.get("sizes")}
    return source, source.read_config(shapes, case.config, **options)


def _run_layout(case: GoldenCase) -> Result:
    try:
        source, config = _read(case, case.shapes)
    except CheckpointError:
        return Result("layout", None, None, None, "this layout is not built yet")
    own = empty_model(GigaTok, config).state_dict()
    key_map = source.key_map(config)
    published = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    report = key_report(own, key_map.to_ours(published)) or key_report(published, key_map.to_published(own))
    stored = sum(tensor.numel() for tensor in own.values())
    if not report and case.data.get("num_elements") not in (None, stored):
        report = f"{stored} values, recorded {case.data['num_elements']}"
    return Result("layout", 0.0, 0.0, not report, report)


def build(case: GoldenCase, prefix: str = "") -> tuple[GigaTok, Any]:
    """The model of a case with its weights, and the names' map; the way back is checked too."""
    state = case.state(prefix)
    source, config = _read(case, {key: tuple(tensor.shape) for key, tensor in state.items()})
    model = empty_model(GigaTok, config)
    key_map = source.key_map(config)
    model.load_weights(key_map.to_ours(state), where=case.name)
    back = key_map.to_published(model.state_dict())
    if back.keys() != state.keys() or not all(torch.equal(back[key], state[key]) for key in state):
        raise AssertionError("official -> ours -> official changed names or values")
    wrapped = source.read_config(
        {key: tuple(tensor.shape) for key, tensor in state.items()}, source.wrap_config(config)
    )
    if wrapped != config:
        raise AssertionError(f"the configuration did not survive: {wrapped} from {config}")
    return model.eval(), key_map


def _input(case: GoldenCase, name: str) -> Any:
    """A case's input: stored, a number, or made by the image rule and brought back to [0, 1]."""
    spec = case.data["inputs"][name]
    if "value" in spec:
        return spec["value"]
    if "tensor" in spec:
        return case.tensor(spec["tensor"])
    image = case.input({"inputs": [{"name": name, **spec}]}, name)
    transform = spec.get("transform", "x")
    if transform == "2*x-1":
        return image
    factor = float(transform.removesuffix("x").removesuffix("*") or 1.0)
    return (factor * image + 1.0) / 2.0  # the recording's number line is [-1, 1]


def _compare(case: GoldenCase, step: dict[str, Any], name: str, ours: Tensor | float, **options: Any) -> Result:
    spec = next(output for output in step["outputs"] if output["name"] == name)
    ours = torch.as_tensor(ours)
    if list(ours.shape) != spec["full_shape"]:
        return Result(name, None, None, False, f"shape {list(ours.shape)}, recorded {spec['full_shape']}")
    if spec.get("slice"):
        ours = _apply_index(ours, f"[{spec['slice']}]")
    return case.compare(step, name, ours, **options)


# Inference.


@torch.no_grad()
def _run_inference(case: GoldenCase) -> Iterator[Result]:
    model, _ = build(case)
    memory: dict[str, Tensor] = {}
    for step in case.steps:
        computed = _STEPS[step["op"]](case, model, memory) if step["op"] in _STEPS else {}
        memory |= computed
        for output in step["outputs"]:
            name = output["name"]
            if name == "indices":
                yield _compare_ids(case, step, computed[name])
            elif name in computed:
                yield _compare(case, step, name, computed[name])


def _compare_ids(case: GoldenCase, step: dict[str, Any], ours: Tensor) -> Result:
    """Equal, but where the recorded margin is too small for float arithmetic to tell."""
    theirs, margin = case.tensor("out/indices").flatten(), case.tensor("out/token_margin").flatten()
    wrong = ours.flatten() != theirs
    bad, close = int((wrong & (margin > _MARGIN)).sum()), int(wrong.sum())
    note = f"{close} ids differ, {bad} of them beyond the margin" if close else ""
    return Result("indices", float(close), float(close > 0), bad == 0, note, {"rtol": 0.0, "atol": 0.0})


def _encode(case: GoldenCase, model: GigaTok, memory: dict[str, Tensor]) -> dict[str, Tensor]:
    images = _input(case, "image")
    own_map = model.encode_map(images)
    hidden = model.map_to_hidden(own_map)
    z = model.to_latents(hidden)
    quantised = model.quantizer(z)
    tokens = model.encode(images)
    assert torch.equal(tokens.ids, quantised.ids)
    rows = torch.nn.functional.normalize(model.quantizer.codebook, dim=-1)
    distances = (torch.nn.functional.normalize(z, dim=-1).unsqueeze(-2) - rows).square().sum(dim=-1)
    nearest = distances.topk(2, dim=-1, largest=False).values
    shaped = _places if model.config.layout == "2d" else _line
    ids = quantised.ids
    side = model.config.grid_size
    return {
        "cnn_feature": own_map,
        "tokens_before_quant_conv": shaped(hidden),
        "z": shaped(z),
        "quant": shaped(quantised.latents),
        "indices": ids.unflatten(1, (side, side)) if model.config.layout == "2d" else ids,
        "token_margin": nearest[..., 1] - nearest[..., 0],
    }


def _decode(case: GoldenCase, model: GigaTok, memory: dict[str, Tensor]) -> dict[str, Tensor]:
    ids = case.tensor("out/indices").long().flatten(1)  # the recording's own, so that a close id changes nothing
    latents = model.quantizer.lookup(ids)
    grid, inner = model.decode_map(latents)
    images = model.decode(Tokens(ids=ids, codebook_size=model.codebook_size), clamp=False)
    out = {"rec_spatial": grid, "reconstruction": 2.0 * images - 1.0}
    return out | ({} if model.repa_head is None else {"inner_feat": model.repa_head(inner)})


def _probe(case: GoldenCase, model: GigaTok, memory: dict[str, Tensor]) -> dict[str, Tensor]:
    images = _input(case, "image")
    encoder = model.features(images, part="encoder", pool=False)
    shaped = _places if model.config.layout == "2d" else _line
    return {
        "encoder_probe_feat": shaped(encoder),
        "decoder_probe_feat": model.features(images, part="decoder", pool=False),
    }


_STEPS = {"encode": _encode, "decode": _decode, "probe_features": _probe}


def _line(x: Tensor) -> Tensor:
    """[B, N, C] as the official [B, C, 1, N]."""
    return x.transpose(1, 2)[:, :, None]


def _places(x: Tensor) -> Tensor:
    """[B, h*w, C] as the official [B, C, h, w]."""
    side = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).unflatten(2, (side, side))


# Training.


def _loss_args(case: GoldenCase) -> dict[str, Any]:
    args = case.config["loss"]
    return args.get("params", args)


def _loss_config(case: GoldenCase) -> TokenizerLossConfig:
    args, model = _loss_args(case), case.config["model"]["init_args"]
    return TokenizerLossConfig(
        reconstruction=args.get("reconstruction_loss", "l2"),
        reconstruction_weight=_PIXEL_SCALE[args.get("reconstruction_loss", "l2")] * args["reconstruction_weight"],
        perceptual="lpips",
        perceptual_weight=args["perceptual_weight"],
        quantizer_weight=args["codebook_weight"],
        pretrained=False,
        adversarial_weight=args["disc_weight"],
        adversarial_start=args["disc_start"],
        discriminator=args["disc_type"],
        discriminator_weight=args["disc_weight"],
        lecam_weight=0.001 if args["lecam"] else 0.0,
        alignment_weight=0.5,
        auxiliary_end=args["aux_loss_end"],
        direct_weight=float(args["use_direct_rec_loss"]),
        map_weight=model.get("fea_rec_loss_weight", 1.0),
    )


def _load_loss_state(case: GoldenCase, loss: TokenizerLoss) -> None:
    state = case.state("loss.")
    for prefix, module, key_map, inner in (
        ("discriminator.", loss.discriminator, DISCRIMINATOR_KEYS, ""),
        ("perceptual_loss.", loss.perceptual, PERCEPTUAL_KEYS, "lpips."),
    ):
        if module is None:
            continue
        part = {inner + key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
        module.load_state_dict(key_map.to_ours(part))


def _run_losses(case: GoldenCase) -> Iterator[Result]:
    model, key_map = build(case, "model.")
    model.train()
    config = _loss_config(case)
    loss = TokenizerLoss(config)
    if loss.discriminator is not None:
        loss.discriminator = PatchGan(_loss_args(case).get("disc_dim", 64))
    loss.train()
    _load_loss_state(case, loss)
    (step,) = case.steps
    images, at = _input(case, "image"), int(_input(case, "global_step"))
    features = _input(case, "teacher_features")  # [B, h*w, E]
    side = model.config.grid_size
    outputs = model(images, **loss.forward_options(at))
    total, terms = loss.generator(outputs, images, at, features=features.unflatten(1, (side, side)))
    total.backward()
    parameters = {name: parameter.grad for name, parameter in model.named_parameters()}
    none = torch.zeros(())
    computed: dict[str, Any] = {
        "vq_loss": terms["codebook"],
        "commit_loss": terms["commitment"],
        "entropy_loss_weighted": terms.get("entropy", none),
        "feature_rec_loss": terms.get("map", none),
        "rec_loss": terms["reconstruction"],
        "perceptual_loss": terms["perceptual"],
        "direct_rec_loss": terms.get("direct_reconstruction", none),
        "direct_perceptual_loss": terms.get("direct_perceptual", none),
        "semantic_loss": terms["alignment"] / config.alignment_weight,
        "inner_feat": outputs["projected"].flatten(1, 2),
        "generator_total": total,
        "discriminator_total": _discriminator_total(loss, images, outputs["reconstruction"], at),
    }
    for output in step["outputs"]:
        name = output["name"]
        if name.startswith("grad_norm/"):
            gradient = parameters[key_map.name_to_ours(name.removeprefix("grad_norm/"))]
            yield _compare(case, step, name, none if gradient is None else gradient.norm())
        elif name in computed:
            yield _compare(case, step, name, computed[name])


def _discriminator_total(loss: TokenizerLoss, images: Tensor, reconstruction: Tensor, step: int) -> Tensor:
    if not loss.adversary_is_on(step):
        return torch.zeros(())
    logits = loss.discriminator(torch.cat([images, reconstruction.detach()]), parts=2)
    return loss.discriminate(*logits.chunk(2))[0]
