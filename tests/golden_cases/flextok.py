"""Golden cases of the flextok family: tokenizers, their autoencoder, FSQ, and the parts of flow matching."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vistok.config import merge
from vistok.convert import recognise
from vistok.layers.flow import noise_levels
from vistok.layers.guidance import AdaptiveProjectedGuidance, ApgConfig, classifier_free_guidance
from vistok.layers.kl_autoencoder import KlAutoencoder
from vistok.layers.nested_dropout import draw_lengths, length_probabilities
from vistok.layers.positions import sincos_2d, timestep_features
from vistok.losses.alignment import alignment_loss
from vistok.losses.flow_matching import flow_matching_loss
from vistok.models.base import PretrainedModel, key_report
from vistok.models.flextok import FlexTok
from vistok.quantizers import FiniteScalarQuantizer
from vistok.registry import model_class
from vistok.tokens import Tokens

from golden_cases import GoldenCase, Result

_ENOUGH_DRAWS = 200_000


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case."""
    _name_inputs_and_outputs(case)
    operations = {step["op"] for step in case.steps}
    if not case.steps:
        yield _run_layout(case)
    elif operations <= {"vae_encode", "vae_decode"}:
        yield from _run_vae(case)
    elif operations <= _PARTS.keys():
        for step in case.steps:
            yield from _PARTS[step["op"]](case, step)
    else:
        yield from _run_model(case)


def _name_inputs_and_outputs(case: GoldenCase) -> None:
    """These cases name most tensors in short; spell them out as the other families do."""
    for step in case.steps:
        step["inputs"] = [
            {"name": item.rpartition("/")[2], "tensor": item if "/" in item else f"in/{item}"}
            if isinstance(item, str)
            else item
            for item in step.get("inputs", [])
        ]
        step["outputs"] = [
            {"name": item, "tensor": f"out/{item}"} if isinstance(item, str) else item for item in step["outputs"]
        ]


def _both_layouts(case: GoldenCase) -> dict[str, float]:
    """The plain layout must fit the recording too; tests compare the two more closely, in fp64."""
    return {key: case.tolerance[key] for key in ("rtol", "atol")}


def _only(step: dict[str, Any]) -> str:
    (output,) = step["outputs"]
    return output["name"]


# Layouts, and whole models.


def _run_layout(case: GoldenCase) -> Result:
    source = recognise(case.shapes)
    config = source.read_config(case.shapes, case.config)
    with torch.device("meta"):
        model = model_class(source.family)(config)
    key_map = source.key_map(config)
    published = {
        name: torch.empty(shape, device="meta")
        for name, shape in case.shapes.items()
        if not (source.ignorable and name.startswith(source.ignorable))  # heads of training that we do not know
    }
    own = model.state_dict()
    report = key_report(own, key_map.to_ours(published)) or key_report(published, key_map.to_published(own))
    values = sum(tensor.numel() for tensor in own.values())
    if not report and case.data.get("parameters") not in (None, values):
        report = f"{values} values, recorded {case.data['parameters']}"
    again = source.read_config(case.shapes, source.wrap_config(config))
    if not report and again != config:
        report = "our configuration -> published -> ours changed it"
    return Result("layout", 0.0, 0.0, not report, report)


def build(case: GoldenCase) -> PretrainedModel:
    """The model of a case with its weights; the way back to the published names is checked too."""
    state = case.state()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    source = recognise(shapes)
    config = source.read_config(shapes, merge(case.config, _told_of_vae(case)))
    model = model_class(source.family)(config)
    key_map = source.key_map(config)
    model.load_weights(key_map.to_ours(state), where=case.name)
    back = key_map.to_published(model.state_dict())
    if back.keys() != state.keys() or not all(torch.equal(back[key], state[key]) for key in state):
        raise AssertionError("official -> ours -> official changed names or values")
    if source.read_config(shapes, source.wrap_config(config)) != config:
        raise AssertionError("our configuration -> published -> ours changed it")
    return model.eval()


def _told_of_vae(case: GoldenCase) -> dict[str, Any]:
    """What the autoencoder's own configuration says and the tokenizer's does not."""
    own, tree = case.data.get("vae_config", {}), case.config.get("vae")
    given = {key for key, value in tree.items() if value is not None} if isinstance(tree, dict) else set()
    told = {key: own[key] for key in ("norm_num_groups", "scaling_factor") if key in own and key not in given}
    return {"vae": told} if told else {}


@torch.no_grad()
def _run_vae(case: GoldenCase) -> Iterator[Result]:
    vae: KlAutoencoder = build(case).vae
    for step in case.steps:
        if step["op"] == "vae_encode":
            mean, logvar = vae.moments(case.input(step, "image"))
            kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(dim=1)
            computed = {"mean": mean, "logvar": logvar, "kl": kl}
        else:
            (latents,) = (case.tensor(item["tensor"]) for item in step["inputs"])
            images = 2.0 * vae.decode(latents) - 1.0
            name = _only(step)
            stride = int(name.rpartition("_s")[2]) if "_s" in name else 1
            computed = {name: images[:, :, ::stride, ::stride]}
        for output in step["outputs"]:
            yield case.compare(step, output["name"], computed[output["name"]])


@torch.no_grad()
def _run_model(case: GoldenCase) -> Iterator[Result]:
    model = build(case)
    assert isinstance(model, FlexTok)
    memory: dict[str, Any] = {}
    for step in case.steps:
        computed = _OPERATIONS[step["op"]](case, model, step, memory)
        margins = computed.pop("margins", None)
        for output in step["outputs"]:
            name = output["name"]
            if name not in computed:
                continue
            if margins is not None and name == "ids":
                yield _compare_ids(case, step, name, computed[name], margins, limit=1e-3)
            else:
                yield case.compare(step, name, computed[name])


def _compare_ids(
    case: GoldenCase, step: dict[str, Any], name: str, ours: Tensor, margins: Tensor, *, limit: float
) -> Result:
    """Exact wherever float error cannot have flipped an id."""
    theirs = case.tensor(f"out/{name}").long()
    wrong = (ours.reshape(theirs.shape) != theirs) & (margins.reshape(theirs.shape) > limit)
    number = int(wrong.sum())
    return Result(name, float(number), float(number > 0), number == 0, f"{number} ids differ" if number else "")


def _encode(case: GoldenCase, model: FlexTok, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    images = case.input(step, "image")
    mean, logvar = model.vae.moments(images)
    scaled = model.to_latents(images)
    features = model.encoder.features(scaled)
    latents = model.encoder(scaled)
    quantised = model.quantizer(latents)
    tokens = model.encode(images)
    half = model.encode(images, length=max(1, model.num_tokens // 2))
    assert torch.equal(tokens.ids, quantised.ids)
    assert torch.equal(model.quantizer.ids_of(quantised.latents), tokens.ids)
    computed = {"vae_mean": mean, "vae_logvar": logvar, "latents": latents, "quant": quantised.latents}
    margins = model.quantizer.rounding_margin(latents)
    assert ((half.ids == tokens.ids[:, : half.num_tokens]) | (margins[:, : half.num_tokens] < 1e-3)).all()
    computed |= {"ids": tokens.ids, "rounding_margin": margins}
    for output in step["outputs"]:
        if output["name"].startswith("register_features"):
            stride = output["name"].partition("stride")[2] or "1"
            computed[output["name"]] = features[..., :: int(stride)]
    return computed | {"margins": margins}


def _times(case: GoldenCase, step: dict[str, Any], count: int) -> Tensor:
    """A time for each sample: stored, or one for all."""
    return case.input(step, "t") if case.has_input(step, "t") else torch.tensor(step["t"]).float().expand(count)


def _velocity(case: GoldenCase, model: FlexTok, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    noised = case.input(step, "noised")
    times = _times(case, step, len(noised))
    ids = case.input(step, "ids").long() if case.has_input(step, "ids") else torch.zeros(len(noised), 1).long()
    keep = step.get("keep", 0)
    keep = [keep] * len(noised) if isinstance(keep, int) else keep
    codes = model.quantizer.lookup(ids)
    velocity = model.velocity(noised, times, codes, keep)
    plain = model.velocity(noised, times, codes, keep, fast=False)
    torch.testing.assert_close(velocity, plain, **_both_layouts(case))
    return {_only(step): velocity}


def _intermediate(case: GoldenCase, model: FlexTok, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    noised, ids = case.input(step, "noised"), case.input(step, "ids").long()
    keep = step["keep"] if isinstance(step["keep"], list) else [step["keep"]] * len(noised)
    times = _times(case, step, len(noised))
    grid = model.config.grid_size
    condition = model.decoder.condition(model.quantizer.lookup(ids), keep, num_patches=math.prod(grid))
    features = model.decoder(noised, model.decoder.modulations(times), condition)[1]
    name = _only(step)
    strides = [int(part[1:]) for part in name.split("_") if part[0] == "s" and part[1:].isdigit()]
    theirs = case.tensor(step["outputs"][0]["tensor"])
    if len(strides) == 1:  # of channels or of positions: the shape tells
        strides = [1, *strides] if theirs.shape[1] == features.shape[1] else [*strides, 1]
    rows, columns = strides or (1, 1)
    return {name: features[:, ::rows, ::columns]}


def _detokenize(case: GoldenCase, model: FlexTok, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    start = "noise" if case.has_input(step, "noise") else "noised"
    scale = step["guidance_scale"]
    guidance = (lambda t: scale["a"] + scale["b"] * t) if isinstance(scale, dict) else float(scale)
    tokens = Tokens(ids=case.input(step, "ids").long(), codebook_size=model.codebook_size).truncate(step["keep"])
    options = {"steps": step["timesteps"], "guidance": guidance, "apg": step["apg"], "noise": case.input(step, start)}
    latents = model.decode_latents(tokens, **options)
    if model.config.decoder.width < 512:  # the large ones take minutes
        plain = model.decode_latents(tokens, **options, fast=False)
        torch.testing.assert_close(latents, plain, **_both_layouts(case))
    computed: dict[str, Any] = {}
    for output in step["outputs"]:
        name = output["name"]
        if name.startswith("image"):
            images = 2.0 * model.from_latents(latents) - 1.0
            columns = case.tensor(output["tensor"]).shape[-1]
            stride = next(step for step in (4, 1, 2, 8, 16) if len(range(0, images.shape[-1], step)) == columns)
            computed[name] = images[:, :, ::stride, ::stride]
        else:
            computed[name] = latents
    return computed


def _train_forward(case: GoldenCase, model: FlexTok, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    given = {ours: case.input(step, theirs) for ours, theirs in (("noise", "noise"), ("u", "u"), ("keep", "keep_k"))}
    given["drop"] = case.input(step, "null_cond").bool()
    model.train()
    out = model.forward_latents(case.input(step, "latents_clean"), **given)
    model.eval()
    memory["train"] = out
    return {
        "train_sigmas": out["noise_levels"],
        "train_noised": out["noised"],
        "train_velocity": out["velocity"],
        "train_rf_loss": flow_matching_loss(out["velocity"], out["target"]),
        "train_ids": out["ids"],
    }


def _repa_loss(case: GoldenCase, model: FlexTok, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    out, target = memory["train"], case.input(step, "repa_target")
    loss = alignment_loss(out["projected"], target)
    return {"repa_features": out["features"], "repa_loss": loss}


_OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "encode": _encode,
    "velocity": _velocity,
    "velocity_uncond": _velocity,
    "velocity_intermediate": _intermediate,
    "detokenize": _detokenize,
    "train_forward": _train_forward,
    "repa_loss": _repa_loss,
}


# Parts.


def _fsq(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    quantizer = FiniteScalarQuantizer(tuple(step["levels"]), bound="tanh")
    names = {item["name"].rpartition("_")[2]: item["name"] for item in step["inputs"]}
    outputs = {output["name"].rpartition("_")[2]: output["name"] for output in step["outputs"]}
    z = case.input(step, names["z"])
    out = quantizer(z)
    assert quantizer.place_values.tolist() == step["basis"] and math.prod(step["levels"]) == step["codebook_size"]
    codebook = quantizer.lookup(torch.arange(step["codebook_size"])).numpy().astype("<f4")
    digest = hashlib.sha256((codebook + 0.0).tobytes()).hexdigest()
    assert digest == step["codebook_sha256_float32_rowmajor"], "the whole codebook differs"
    margins = case.tensor(f"out/{outputs['margin']}")
    yield case.compare(step, outputs["bounded"], quantizer.bounded(z))
    yield case.compare(step, outputs["quant"], out.latents)
    yield _compare_ids(case, step, outputs["ids"], out.ids, margins, limit=1e-5)
    yield case.compare(step, outputs["emb"], quantizer.lookup(case.input(step, names["idx"]).long()))
    yield case.compare(step, outputs["margin"], quantizer.rounding_margin(z))


def _time(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    options = {"max_timestep": step["max_timestep"], "max_period": step["max_period"]}
    features = timestep_features(case.input(step, "t"), step["frequency_embedding_size"], **options)
    yield case.compare(step, _only(step), features)


def _sincos(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    yield case.compare(step, _only(step), sincos_2d(step["h"], step["w"], step["dim"]))


def _noise_level(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    (u,) = (case.tensor(item["tensor"]) for item in step["inputs"])
    options = {"logit_normal": "logit_normal" in step["mode"], "stratified": "stratified" in step["mode"]}
    yield case.compare(step, _only(step), noise_levels(u, **options, mode_scale=step["mode_scale"] or 0.0))


def _apg(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    config = ApgConfig(eta=step["eta"], threshold=step["norm_threshold"] or 0.0, momentum=step["momentum"])
    guide = AdaptiveProjectedGuidance(config)
    pairs = zip(case.input(step, "cond"), case.input(step, "uncond"), strict=True)
    yield case.compare(step, _only(step), torch.stack([guide(*pair, step["guidance_scale"]) for pair in pairs]))


def _cfg(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    pair = case.input(step, "cond"), case.input(step, "uncond")
    yield case.compare(step, _only(step), classifier_free_guidance(*pair, step["guidance_scale"]))


def _lengths(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    """The distribution is what is recorded: official draws come from numpy's global generator."""
    size, pmf, name = step["N"], step["pmf"], _only(step)
    wanted = torch.full((size,), 1.0 / size, dtype=torch.float64)
    if isinstance(pmf, dict):
        wanted = torch.tensor([pmf.get(str(length), 0.0) for length in range(1, size + 1)], dtype=torch.float64)
    ours = length_probabilities(step["mode"], size)
    error = float((ours - wanted).abs().max())
    recorded = case.tensor(f"out/{name}").long()
    possible = bool((ours[recorded - 1] > 0).all())
    draws = draw_lengths(step["mode"], size, _ENOUGH_DRAWS, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(draws, minlength=size + 1)[1:] / _ENOUGH_DRAWS
    spread = (wanted * (1 - wanted) / _ENOUGH_DRAWS).sqrt()
    passed = error < 1e-9 and possible and bool(((share - wanted).abs() <= 6 * spread).all())
    yield Result(name, error, error, passed, "" if passed else "another distribution", {"rtol": 0.0, "atol": 1e-9})


_PARTS: dict[str, Callable[..., Iterator[Result]]] = {
    "fsq": _fsq,
    "timestep_embedding": _time,
    "sincos_2d": _sincos,
    "noise_level": _noise_level,
    "apg": _apg,
    "cfg": _cfg,
    "nested_dropout_lengths": _lengths,
}
