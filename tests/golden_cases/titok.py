"""Golden cases of TiTok and One-D-Piece: tokenizers, their codec, their losses and schedules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vistok.config import embedded_config, load_config
from vistok.convert import recognise, titok
from vistok.errors import CheckpointError
from vistok.losses.adversarial import PatchDiscriminator
from vistok.losses.tokenizer import TokenizerLoss, TokenizerLossConfig
from vistok.models.base import PretrainedModel, key_report
from vistok.quantizers import VectorQuantizer
from vistok.registry import model_class
from vistok.tokens import Tokens
from vistok.training import TrainConfig

from golden_cases import GoldenCase, Result, maskgen, maskgit, rar

# The cases' own tolerances are blind to small values; these are reachable and tell errors apart.
_TIGHT = {"rtol": 1e-4, "atol": 1e-9}
_GRADIENTS = {"rtol": 1e-4, "atol": 1e-6}
# The discriminator's gradients follow a reconstruction whose float noise they multiply: computed in double precision,
# they differ from the recording by more (6e-4, One-D-Piece) than in single (3e-4).
_DISCRIMINATOR_GRADIENTS = {"rtol": 3e-4, "atol": 1e-6}
_PARAMETERS = {"rtol": 1e-5, "atol": 1e-6}


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case that vistok can compute."""
    operations = {step["op"] for step in case.steps}
    if "diffusion_loss" in operations:
        yield from maskgen.run_diffusion_loss(case)
    elif not case.steps:
        yield _run_layout(case)
    elif case.shapes.keys() & {"text_embed_proj.weight", "text_emb.weight"}:
        yield from maskgen.run_generator(case, build(case)[0])
    elif "target_aware_pos_embed" in case.shapes:
        yield from rar.run_generator(case, build(case)[0])
    elif case.shapes.keys() & {"model.embeddings.token_type_embeddings.weight", "mid_block.attn.qkv.weight"}:
        yield from maskgit.run_generator(case, build(case)[0])
    elif "quantize_train" in operations:
        yield from _run_quantizer(case)
    elif operations & {"lr_schedule", "ema_decay", "ema_trace"}:
        yield from _run_schedules(case)
    elif "tail_drop" in operations:
        yield from _run_tail_drop(case)
    elif operations & {"train_loss", "generator_loss"}:
        yield from _run_losses(case)
    elif operations <= {"encode", "decode", "decode_tokens", "decode_logits"}:
        yield from _run_inference(case)


# Layouts: names and shapes, in both directions.


def _run_layout(case: GoldenCase) -> Result:
    if "block_in.0.weight" in case.shapes:
        with torch.device("meta"):
            model: nn.Module = PatchDiscriminator(case.config["hidden_channels"], case.config["num_stages"])
        key_map = titok.DISCRIMINATOR_KEYS
        kernels = {name: tuple(buffer.shape) for name, buffer in model.named_buffers()}
    else:
        try:
            source = recognise(case.shapes)
        except CheckpointError:
            return Result("layout", None, None, None, "this layout is not built yet")
        with torch.device("meta"):
            ours = source.read_config(case.shapes, case.config)
            model = model_class(source.family)(ours)
        key_map, kernels = source.key_map(ours), {}
    published = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    own = model.state_dict()
    report = key_report(own, key_map.to_ours(published))
    back = key_map.to_published(own)
    report = report or key_report(published, back)
    values = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(tensor.numel() for tensor in own.values())
    if not report and case.data.get("num_values") not in (None, stored, values):
        report = f"{stored} values, recorded {case.data['num_values']} ({kernels})"
    return Result("layout", 0.0, 0.0, not report, report)


# Inference.


def build(case: GoldenCase, prefix: str = "") -> tuple[PretrainedModel, Any]:
    """The model of a case with its weights, and the names' map; the way back is checked too."""
    state = case.state(prefix)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    source = recognise(shapes)
    crop = case.config.get("dataset", {}).get("preprocessing", {}).get("crop_size")
    extra = {"sizes": case.data.get("sizes")} if source.family == "titok" else {}
    image_size = crop or _first_image_size(case)
    config = source.read_config(shapes, case.config, image_size=image_size, **extra)
    model = model_class(source.family)(config)
    key_map = source.key_map(config)
    model.load_weights(key_map.to_ours(state), where=case.name)
    back = key_map.to_published(model.state_dict())
    if back.keys() != state.keys() or not all(torch.equal(back[key], state[key]) for key in state):
        raise AssertionError("official -> ours -> official changed names or values")
    return model.eval(), key_map


def _first_image_size(case: GoldenCase) -> int | None:
    for step in case.steps:
        for item in step["inputs"]:
            if "fill_image" in item:
                return item["fill_image"]["shape"][-1]
    return None


@torch.no_grad()
def _run_inference(case: GoldenCase) -> Iterator[Result]:
    model, _ = build(case)
    memory: dict[str, Any] = {}
    for step in case.steps:
        computed = _infer_step(case, model, step, memory)
        memory |= computed
        for output in step["outputs"]:
            if output["name"] in computed:
                margin = step.get("args", {}).get("min_index_margin")
                yield case.compare(step, output["name"], computed[output["name"]], margin=margin)


def _infer_step(case: GoldenCase, model: Any, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Tensor]:
    if step["op"] == "encode":
        return _encode(case, model, step, memory)
    if step["op"] == "decode_logits":
        latents = model.quantizer(model.encode_latents(case.input(step, "image"))).latents
        logits = model.decode_features(latents)
        return {"logits": _grid(logits)}
    return _decode(case, model, step, memory)


def _encode(case: GoldenCase, model: Any, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Tensor]:
    images = case.input(step, "image")
    z = model.encode_latents(images)  # [B, N, C]
    if model.continuous:
        posterior = model.quantizer(z)
        memory["posterior"] = posterior
        out = {"moments": _line(z), "mean": _line(posterior.mean), "logvar": _line(posterior.logvar)}
        return out | {"std": _line(posterior.std), "kl": posterior.kl()}
    tokens = model.encode(images)
    memory["encoded"] = tokens
    if model.family == "maskgit_vqgan":
        return {"h": _grid(z), "codes": tokens.ids}
    quantised = model.quantizer(z)
    assert torch.equal(quantised.ids, tokens.ids)
    return {"z": _line(z), "indices": tokens.ids[:, None], "z_quantized": _line(quantised.latents)}


def _decode(case: GoldenCase, model: Any, step: dict[str, Any], memory: dict[str, Any]) -> dict[str, Tensor]:
    text = case.input(step, "text") if case.has_input(step, "text") else None
    names = [output["name"] for output in step["outputs"]]
    out: dict[str, Tensor] = {}
    if model.continuous:
        posterior = memory.get("posterior")
        if case.has_input(step, "latent"):
            latent = case.input(step, "latent")
            latents = latent.flatten(2).transpose(1, 2)  # [B, C, 1, N] -> [B, N, C]
        elif case.has_input(step, "noise"):
            noise = case.input(step, "noise").flatten(2).transpose(1, 2)
            posterior = posterior or model.quantizer(model.encode_latents(case.input(step, "image")))
            latents = posterior.sample(noise=noise)
            out["latent"] = _line(latents)
        else:
            latents = (posterior or model.quantizer(model.encode_latents(case.input(step, "image")))).mean
        tokens = Tokens(latents=latents)
    else:
        stored = next((item["name"] for item in step["inputs"] if item["name"] in ("tokens", "codes")), None)
        if stored and case.has_input(step, stored):
            ids = case.input(step, stored).long()
            tokens = Tokens(ids=ids.reshape(len(ids), -1), codebook_size=model.codebook_size)
        else:
            tokens = memory["encoded"]
    if "length" in step.get("args", {}):
        tokens = tokens.truncate(step["args"]["length"])
        out |= {
            name: _grid(model.decode_features(model.quantizer.lookup(tokens.ids), text))
            for name in names
            if name.startswith("logits")
        }
    if model.family == "titok" and model.config.head == "proxy":
        latents = tokens.latents if model.continuous else model.quantizer.lookup(tokens.ids)
        image = _grid(model.decode_features(latents, text))
    else:
        image = model.decode(tokens, condition=text, clamp=False)
    for name in names:
        if name.endswith("_stats"):
            out[name] = torch.stack([image.mean(), image.std(), image.abs().mean()])
        elif name == "image" and "image_raw" in names:
            out[name] = model.decode(tokens)
        elif name not in out:
            out[name] = image
    return out


def _line(x: Tensor) -> Tensor:
    """[B, N, C] as the official [B, C, 1, N]."""
    return x.transpose(1, 2)[:, :, None]


def _grid(x: Tensor) -> Tensor:
    """[B, h*w, C] as the official [B, C, h, w]."""
    side = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).unflatten(2, (side, side))


# Training.


def _run_quantizer(case: GoldenCase) -> Iterator[Result]:
    config, step = case.config, case.steps[0]
    quantizer = VectorQuantizer(
        config["codebook_size"],
        config["token_size"],
        commitment_cost=config["commitment_cost"],
        l2_norm=config["use_l2_norm"],
        cluster=config["clustering_vq"],
    )
    state = case.state()
    quantizer.codebook.data.copy_(state["embedding.weight"])
    if config["clustering_vq"]:
        quantizer.usage.copy_(state["embed_prob"])
    z = case.input(step, "z").flatten(2).transpose(1, 2).requires_grad_()
    g = case.input(step, "g").flatten(2).transpose(1, 2)
    out = quantizer.train()(z)
    loss = out.losses["commitment"] + out.losses["codebook"]
    through = torch.autograd.grad((out.latents * g).sum(), z, retain_graph=True)[0]
    grad_z, grad_codebook = torch.autograd.grad(loss, [z, quantizer.codebook])
    computed = {
        "z_quantized": _line(out.latents),
        "indices": out.ids[:, None],
        "quantizer_loss": loss,
        "commitment_loss": out.losses["commitment"],
        "codebook_loss": out.losses["codebook"],
        "grad_z_straight_through": _line(through),
        "grad_z_loss": _line(grad_z),
        "grad_codebook_loss": grad_codebook,
        "embedding_after": quantizer.codebook,
        "embed_prob_after": getattr(quantizer, "usage", torch.zeros(0)),
    }
    for output in step["outputs"]:
        name = output["name"]
        tight = (
            _PARAMETERS if name.endswith("_after") else _TIGHT if name.endswith("_loss") and "grad" not in name else {}
        )
        yield case.compare(step, name, computed[name], **tight)


def _run_tail_drop(case: GoldenCase) -> Iterator[Result]:
    model, _ = build(case)
    model.train()
    model.freeze_encoder()
    for step in case.steps:
        args, name = step["args"], step["outputs"][0]["name"]
        if step["op"] == "tail_drop":
            rows = []
            for seed in args["seeds"]:
                torch.manual_seed(seed)
                rows.append([model.draw_length(None) for _ in range(step["outputs"][0]["full_shape"][1])])
            yield case.compare(step, name, torch.tensor(rows))
        elif step["op"] == "train_forward":
            torch.manual_seed(args["seed"])
            with torch.no_grad():
                out = model(case.input(step, "image"))
            yield case.compare(step, name, _grid(out["logits"]) if "logits" in out else out["reconstruction"])


def _loss_config(case: GoldenCase) -> TokenizerLossConfig:
    losses = case.config["losses"]
    return TokenizerLossConfig(
        reconstruction=losses.get("reconstruction_loss", "l2"),
        reconstruction_weight=losses.get("reconstruction_weight", 1.0),
        perceptual=losses.get("perceptual_loss", ""),
        perceptual_weight=losses.get("perceptual_weight", 0.0),
        pretrained=False,
        quantizer_weight=losses.get("quantizer_weight", 1.0),
        kl_weight=losses.get("kl_weight", 1e-6),
        logvar=losses.get("logvar_init", 0.0),
        adversarial_weight=losses.get("discriminator_weight", 0.0) * losses.get("discriminator_factor", 1.0),
        adversarial_start=losses.get("discriminator_start", 0),
        lecam_weight=losses.get("lecam_regularization_weight", 0.0),
    )


def _run_losses(case: GoldenCase) -> Iterator[Result]:
    model, key_map = build(case, "model.")
    model.train()
    if model.config.head == "vqgan":
        model.freeze_encoder()
    config = _loss_config(case)
    loss = TokenizerLoss(config).train()
    _load_loss_state(case, loss)
    memory: dict[str, Any] = {}
    for step in case.steps:
        if step["op"] in ("train_loss", "generator_loss"):
            yield from _generator_step(case, model, loss, step, memory)
        elif step["op"] in ("grads", "generator_grads"):
            yield from _gradient_step(case, model, key_map, step, memory)
        elif step["op"] == "adamw_step":
            yield from _adamw_step(case, model, key_map, step)
        elif step["op"] == "discriminator_loss":
            yield from _discriminator_step(case, loss, step, memory)


def _load_loss_state(case: GoldenCase, loss: TokenizerLoss) -> None:
    state = case.state("loss_module.")
    if loss.discriminator is not None:
        part = {key.removeprefix("discriminator."): x for key, x in state.items() if key.startswith("discriminator.")}
        loss.discriminator.load_state_dict(titok.DISCRIMINATOR_KEYS.to_ours(part))
        loss.lecam.mean_real.copy_(state["ema_real_logits_mean"].reshape(1))
        loss.lecam.mean_fake.copy_(state["ema_fake_logits_mean"].reshape(1))
    if loss.perceptual is not None:
        prefix = "perceptual_loss."
        part = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
        mapped = titok.PERCEPTUAL_KEYS.to_ours(part)
        own = loss.perceptual.state_dict()
        loss.perceptual.load_state_dict({key: mapped[key] for key in own})


def _generator_step(
    case: GoldenCase, model: Any, loss: TokenizerLoss, step: dict[str, Any], memory: dict[str, Any]
) -> Iterator[Result]:
    images = case.input(step, "image")
    text = case.input(step, "text") if case.has_input(step, "text") else None
    noise = case.input(step, "noise").flatten(2).transpose(1, 2) if case.has_input(step, "noise") else None
    if "tail_seed" in case.data.get("extra", {}):
        torch.manual_seed(case.data["extra"]["tail_seed"])
    codes = case.input(step, "codes").long() if case.has_input(step, "codes") else None
    outputs = model(images, text=text, noise=noise)
    memory |= {"outputs": outputs, "images": images}
    computed: dict[str, Any] = {}
    if "logits" in outputs:
        computed |= {"logits": _grid(outputs["logits"]), "indices": outputs["ids"][:, None]}
    else:
        computed["rec"] = outputs["reconstruction"]
    start = loss.config.adversarial_start
    for prefix, at in (("pre_", start - 1), ("post_", start)) if "logits" not in outputs else (("", 0),):
        total, terms = loss.generator(outputs, images, at, codes=codes)
        weighted = terms.get("adversarial", torch.zeros(()))
        weight = case.config["losses"].get("discriminator_weight", 0.0)
        factor = case.config["losses"].get("discriminator_factor", 1.0)
        computed |= {f"{prefix}{name}_loss": value for name, value in terms.items()}
        computed |= {f"{prefix}total_loss": total, f"{prefix}weighted_gan_loss": weighted}
        computed |= {
            f"{prefix}discriminator_factor": factor * float(loss.adversary_is_on(at)),
            f"{prefix}d_weight": weight,
        }
        computed[f"{prefix}gan_loss"] = weighted / (weight * factor) if weight else weighted
    memory["total"] = total
    for output in step["outputs"]:
        name = output["name"]
        if name in computed:
            scalar = not output["full_shape"]
            yield case.compare(step, name, computed[name], **(_TIGHT if scalar else {}))


def _gradient_step(
    case: GoldenCase, model: Any, key_map: Any, step: dict[str, Any], memory: dict[str, Any]
) -> Iterator[Result]:
    memory["total"].backward(retain_graph=True)
    parameters = dict(model.named_parameters())
    gradients = [parameters[key_map.name_to_ours(name)].grad for name in step["args"]["names"]]
    norms = torch.stack([gradient.norm() for gradient in gradients])
    others = [name for name, p in parameters.items() if p.grad is not None and p.grad.norm() > 0]
    assert len(others) <= len(norms), "parameters have gradients that the recording does not name"
    computed = {"grad_norms": norms, "total_grad_norm": norms.norm()}
    for output in step["outputs"]:
        yield case.compare(step, output["name"], computed[output["name"]], **_GRADIENTS)


def _recipe(case: GoldenCase) -> TrainConfig:
    """A recipe of the family, which knows what is not decayed."""
    name = {"titok": "titok/titok_s128_stage1.yaml", "onedpiece": "onedpiece/onedpiece_s256_stage1.yaml"}[case.family]
    return load_config(TrainConfig, embedded_config(name))


def _adamw_step(case: GoldenCase, model: Any, key_map: Any, step: dict[str, Any]) -> Iterator[Result]:
    from vistok.training.config import OptimizerConfig
    from vistok.training.optimizer import build_optimizer, clip_gradients

    args = step["args"]
    config = OptimizerConfig(
        lr=args["lr"],
        betas=tuple(args["betas"]),
        eps=args["eps"],
        weight_decay=args["weight_decay"],
        no_decay=_recipe(case).optimizer.no_decay,
    )
    optimizer = build_optimizer(model, config)
    clip_gradients(model.parameters(), args["max_grad_norm"])
    gradients = key_map.to_published({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    optimizer.step()
    published = key_map.to_published(model.state_dict())
    for output in step["outputs"]:
        name = output["name"].removeprefix("param_")
        # The first step is lr * g / (|g| + eps): where a gradient is itself no more than the noise of float sums, so is the step.
        size = gradients[name].abs()
        noise = args["lr"] * (1e-6 * size.max() / (size + args["eps"])).clamp_max(2.0)
        atol = _PARAMETERS["atol"] + noise
        yield case.compare(step, output["name"], published[name], rtol=_PARAMETERS["rtol"], atol=atol)


def _discriminator_step(
    case: GoldenCase, loss: TokenizerLoss, step: dict[str, Any], memory: dict[str, Any]
) -> Iterator[Result]:
    prefix = f"d{step['args']['call']}_"
    fake_images = memory["outputs"]["reconstruction"].detach()
    real, fake = loss.discriminator(memory["images"]), loss.discriminator(fake_images)
    total, terms = loss.discriminate(real, fake)
    loss.discriminator.zero_grad()
    total.backward()
    computed = {
        "disc_logits_real": real,
        "disc_logits_fake": fake,
        "disc_grad_norms": torch.stack([p.grad.norm() for p in loss.discriminator.parameters()]),
        f"{prefix}discriminator_loss": total,
        f"{prefix}logits_real": terms["logits_real"],
        f"{prefix}logits_fake": terms["logits_fake"],
        f"{prefix}lecam_loss": terms["lecam"],
        f"{prefix}ema_real": loss.lecam.mean_real,
        f"{prefix}ema_fake": loss.lecam.mean_fake,
    }
    for output in step["outputs"]:
        name = output["name"]
        tight = (
            _DISCRIMINATOR_GRADIENTS if name == "disc_grad_norms" else {} if len(output["full_shape"]) > 1 else _TIGHT
        )
        yield case.compare(step, name, computed[name], **tight)


def _run_schedules(case: GoldenCase) -> Iterator[Result]:
    from vistok.training.ema import Ema, ema_decay
    from vistok.training.schedules import learning_rate, linear_anneal

    config = case.config
    for step in case.steps:
        name = step["outputs"][0]["name"]
        if step["op"] == "ema_trace":
            yield from _ema_trace(case, step, Ema)
            continue
        steps = case.input(step, "steps").long().tolist()
        if step["op"] == "lr_schedule":
            kind = step["args"]["scheduler"]
            rates = (config["learning_rate"], config["end_lr"], config["warmup"], config["total"])
            values = [learning_rate(s, kind, *rates) for s in steps]
        elif step["op"] == "ema_decay":
            values = [ema_decay(s, config["ema_decay"]) for s in steps]
        else:
            values = [linear_anneal(s, *config["anneal"]) for s in steps]
        yield case.compare(step, name, torch.tensor(values, dtype=torch.float64), **_TIGHT)


def _ema_trace(case: GoldenCase, step: dict[str, Any], ema_class: Any) -> Iterator[Result]:
    module = nn.Module()
    module.w = nn.Parameter(case.state()["w"])
    computed = {"w0": module.w.detach().clone()}
    ema = ema_class(module, decay=case.config["ema_decay"])
    trace = []
    (recorded,) = (output for output in step["outputs"] if output["name"] == "ema_trace")
    for update in range(1, 1 + recorded["full_shape"][0]):
        module.w.data += 1.0
        ema.update(module, step=update)
        trace.append(ema.module.w.detach().clone())
    computed["ema_trace"] = torch.stack(trace)
    for output in step["outputs"]:
        yield case.compare(step, output["name"], computed[output["name"]], rtol=1e-5, atol=1e-6)
