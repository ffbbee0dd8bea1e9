"""FlexTok's published names and configurations, and those of the autoencoders published with it.

The configuration is a tree whose entries name classes to build. Here it is data: known class names
stand for parts of ours, an unknown one is an error, and nothing is imported or called by name. It
comes as ``config.json``, or as Python literals in the metadata of the safetensors file. Shapes tell most sizes again
and win; without any configuration the rest is what all published checkpoints have.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import CheckpointError, PublishedConfigError
from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.models.flextok import FlexTokConfig, RegisterTransformerSize
from vistok.models.kl_vae import KlVaeConfig

_ENC, _DEC = "encoder.module_dict.", "decoder.module_dict."
_PARTS = ("vae", "encoder", "decoder", "regularizer", "flow_matching_noise_module", "pipeline")
_MODULES = {
    "enc_channels_to_last": "PerSampleOp",
    "enc_patch_emb": "PatchEmbedder",
    "enc_posemb_module": "PositionalEmbeddingAdder",
    "enc_register_module": "Registers1D",
    "enc_seq_packer": "BlockWiseSequencePacker",
    "enc_transformer": "FlexTransformer",
    "enc_unpacker": "SequenceUnpacker",
    "enc_to_latents": "LinearHead",
    "dec_from_latents": "LinearLayer",
    "dec_registers_posemb_module": "PositionalEmbeddingAdder",
    "dec_nested_dropout": "MaskedNestedDropout",
    "dec_latent_dropout": "LearnedNullCond",
    "dec_noise_channels_to_last": "PerSampleOp",
    "dec_noise_patch_emb": "PatchEmbedder",
    "dec_patches_posemb_module": "PositionalEmbeddingAdder",
    "dec_seq_packer": "BlockWiseSequencePacker",
    "dec_time_embedder": "TimestepEmbedder",
    "dec_transformer": "FlexTransformer",
    "dec_unpacker": "SequenceUnpacker",
    "dec_repa_unpacker": "SequenceUnpacker",
    "dec_to_patches": "ToPatchesLinearHead",
    "dec_channels_to_first": "PerSampleOp",
}
_OTHER_CLASSES = {
    "FlexTok",
    "FlexTokFromHub",
    "StableDiffusionVAE",
    "SequentialModuleDictWrapper",
    "FSQ",
    "MinRFNoiseModule",
    "MinRFPipeline",
    "channels_first_to_last",
    "channels_last_to_first",
}
_CLASSES = frozenset(_MODULES.values()) | _OTHER_CLASSES
# What the published configurations have everywhere, and ours can do no other way.
_FIXED = {
    "posemb_scaling": ("absolute",),
    "use_mup_readout": (False,),
    "ordering_mode": ("nested",),
    "flatten_patches": (False,),
}
_REPA_PREFIX = "dec_repa"
_LEVELS = FlexTokConfig().levels
_TARGETS = {
    "PerSampleOp": "flextok.model.utils.dict_ops",
    "PatchEmbedder": "flextok.model.preprocessors.patching",
    "PositionalEmbeddingAdder": "flextok.model.utils.posembs",
    "Registers1D": "flextok.model.preprocessors.registers",
    "BlockWiseSequencePacker": "flextok.model.preprocessors.flex_seq_packing",
    "FlexTransformer": "flextok.model.trunks.transformers",
    "SequenceUnpacker": "flextok.model.postprocessors.seq_unpacking",
    "LinearHead": "flextok.model.postprocessors.heads",
    "LinearLayer": "flextok.model.preprocessors.linear",
    "MaskedNestedDropout": "flextok.model.preprocessors.token_dropout",
    "LearnedNullCond": "flextok.model.preprocessors.nullcond",
    "TimestepEmbedder": "flextok.model.preprocessors.time_embedding",
    "ToPatchesLinearHead": "flextok.model.postprocessors.heads",
}


def _block_rules(published: str, ours: str) -> list[Rule]:
    pairs = [
        ("attn.wq.weight", "attn.query.weight"),
        ("attn.wk.weight", "attn.key.weight"),
        ("attn.wv.weight", "attn.value.weight"),
        ("attn.proj.weight", "attn.proj.weight"),
        ("mlp.fc1.weight", "mlp.gate.weight"),
        ("mlp.fc3.weight", "mlp.up.weight"),
        ("mlp.fc2.weight", "mlp.down.weight"),
        ("adaLN_modulation.1.*", "modulation.*"),
    ]
    return [Rule(f"{published}.blocks.{{}}.{left}", f"{ours}.blocks.{{}}.{right}") for left, right in pairs]


_KEY_MAP = KeyMap(
    [
        Rule("vae.vae.*", "vae.net.*"),
        Rule(f"{_ENC}enc_patch_emb.patch_proj.*", "encoder.patch_embed.*"),
        Rule(f"{_ENC}enc_posemb_module.posembs", "encoder.pos_embed"),
        Rule(f"{_ENC}enc_register_module.registers", "encoder.registers"),
        *_block_rules(f"{_ENC}enc_transformer", "encoder"),
        Rule(f"{_ENC}enc_to_latents.proj.*", "encoder.to_latents.*"),
        Rule(f"{_DEC}dec_from_latents.proj.*", "decoder.latent_embed.*"),
        Rule(f"{_DEC}dec_registers_posemb_module.posembs", "decoder.register_pos_embed", "columns"),
        Rule(f"{_DEC}dec_nested_dropout.dropout_mask_token", "decoder.mask_token"),
        Rule(f"{_DEC}dec_latent_dropout.nullcond", "decoder.null_token"),
        Rule(f"{_DEC}dec_noise_patch_emb.patch_proj.*", "decoder.patch_embed.*"),
        Rule(f"{_DEC}dec_patches_posemb_module.posembs", "decoder.pos_embed"),
        Rule(f"{_DEC}dec_time_embedder.mlp.0.*", "decoder.time_embed.fc1.*"),
        Rule(f"{_DEC}dec_time_embedder.mlp.2.*", "decoder.time_embed.fc2.*"),
        *_block_rules(f"{_DEC}dec_transformer", "decoder"),
        Rule(f"{_DEC}dec_to_patches.adaLN_modulation.1.*", "decoder.head_modulation.*"),
        Rule(f"{_DEC}dec_to_patches.proj.*", "decoder.to_patches.*"),
        Rule("repa_head.mlp.1.*", "repa_head.fc1.*"),
        Rule("repa_head.mlp.3.*", "repa_head.fc2.*"),
        Rule("repa_head.out_proj.*", "repa_head.out.*"),
    ]
)


# Published -> ours.


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> FlexTokConfig:
    """Our configuration of a published checkpoint.

    Args:
        shapes: of its tensors.
        published: its configuration tree, or the metadata of its file.
        image_size: a wish that it is checked against.
    Raises:
        PublishedConfigError: a class or a setting that is not known here.
    """
    tree = _tree(published)
    modules = _modules(tree)
    patch_width, in_channels = shapes[f"{_ENC}enc_patch_emb.patch_proj.weight"]
    has_vae = any(name.startswith("vae.vae.") for name in shapes)
    vae_part = _mapping(tree.get("vae"), "vae")
    groups = {"norm_num_groups": vae_part.get("norm_num_groups")}
    vae = autoencoder_config(shapes, "vae.vae.", groups) if has_vae else "none"
    channels = vae.latent_channels if vae != "none" else modules["enc_patch_emb"].get("channels_in", 3)
    noise = _mapping(tree.get("flow_matching_noise_module"), "flow_matching_noise_module")
    code_dim = shapes[f"{_ENC}enc_to_latents.proj.weight"][0]
    register_module = modules["enc_register_module"]
    num_tokens = shapes[f"{_ENC}enc_register_module.registers"][0]
    positions = shapes[f"{_DEC}dec_registers_posemb_module.posembs"][-1]
    if positions != num_tokens or register_module.get("n_max", num_tokens) != num_tokens:
        raise PublishedConfigError(f"{num_tokens} registers come with {positions} positions and {register_module}")
    modulation = shapes[f"{_DEC}dec_transformer.blocks.0.adaLN_modulation.1.weight"]
    config = FlexTokConfig(
        vae=vae,
        scaling_factor=_number(vae_part.get("scaling_factor")),
        sample_posterior=bool(vae_part.get("sample_posterior", True)),
        grid_size=shapes[f"{_ENC}enc_posemb_module.posembs"][2:],
        patch_size=math.isqrt(in_channels // channels),
        num_tokens=num_tokens,
        levels=_levels(tree, code_dim),
        encoder=_size(shapes, f"{_ENC}enc_transformer", patch_width, modules["enc_transformer"]),
        decoder=_size(
            shapes,
            f"{_DEC}dec_transformer",
            shapes[f"{_DEC}dec_from_latents.proj.weight"][0],
            modules["dec_transformer"],
        ),
        causal=_choice(
            modules["enc_seq_packer"],
            "mask_mode",
            {"causal_last": True, "full": False},
            "enc_seq_packer",
            "causal_last",
        ),
        modulation_kinds=modulation[0] // (6 * modulation[1]),
        time_features=shapes[f"{_DEC}dec_time_embedder.mlp.0.weight"][1],
        max_timestep=float(modules["dec_time_embedder"].get("max_timestep", 1000.0)),
        intermediate_layers=tuple(modules["dec_transformer"].get("intermediate_layers") or ())
        if tree
        else FlexTokConfig().intermediate_layers,
        repa_dim=shapes.get("repa_head.out_proj.weight", (0, 0))[0],
        repa_hidden=shapes.get("repa_head.out_proj.weight", (0, 0))[1],
        nested_dropout=_choice(
            modules["dec_nested_dropout"],
            "size_sampling_mode",
            {mode: mode for mode in ("uniform", "pow2", "uniform_pow2")},
            "dec_nested_dropout",
            "pow2",
        ),
        null_probability=float(modules["dec_latent_dropout"].get("dropout_prob", 0.2)),
        drop_quant_probability=float(_mapping(tree.get("regularizer"), "regularizer").get("drop_quant_p") or 0.0),
        logit_normal=bool(noise.get("ln", False)),
        stratified=bool(noise.get("stratisfied", False)),  # published with this spelling
        mode_scale=float(noise.get("mode_scale", 0.25)),
    )
    if image_size not in (None, config.image_shape[0]):
        raise CheckpointError(
            f"this FlexTok checkpoint is for {config.image_shape[0]}-pixel images, and {image_size} was asked for"
        )
    return config


def _tree(published: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration tree, wherever it lies: literals unfolded, class names checked; {} where there is none."""
    if not published:
        return {}
    inner = published
    while not {"encoder", "decoder"} <= inner.keys():
        inner = next((value for value in inner.values() if isinstance(value, Mapping)), None)
        if inner is None:
            return {}
    tree = {}
    for part in _PARTS:
        value = inner.get(part)
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise PublishedConfigError(
                    f"the part {part} of FlexTok's configuration is no literal: {error}"
                ) from error
        tree[part] = value
    _check_classes(tree, "")
    return tree


def _check_classes(value: Any, where: str) -> None:
    """Raise for a class or a fixed setting that is not known; heads for alignment may be anything."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_classes(item, f"{where}[{index}]")
    if not isinstance(value, Mapping):
        return
    target = value.get("_target_")
    if target is not None and str(target).rpartition(".")[2] not in _CLASSES:
        raise PublishedConfigError(
            f"FlexTok's configuration names the class {target!r} at {where or 'the top'}, which vistok does not know; "
            "classes are never built by name"
        )
    for key, allowed in _FIXED.items():
        if key in value and value[key] not in allowed:
            raise PublishedConfigError(
                f"FlexTok's configuration has {key}: {value[key]!r} at {where}; vistok builds {allowed[0]!r} only"
            )
    for key, item in value.items():
        if not str(key).startswith(_REPA_PREFIX) or key in _MODULES:
            _check_classes(item, f"{where}.{key}".lstrip("."))


def _modules(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Settings of all known modules by name; {} for those that are not told."""
    out: dict[str, Mapping[str, Any]] = {name: {} for name in _MODULES}
    for side in ("encoder", "decoder"):
        part = _mapping(tree.get(side), side)
        for name, settings in _mapping(part.get("module_dict"), f"{side}.module_dict").items():
            settings = _mapping(settings, name)
            target = str(settings.get("_target_", "")).rpartition(".")[2]
            if name not in _MODULES:
                if not name.startswith(_REPA_PREFIX):
                    raise PublishedConfigError(
                        f"FlexTok's configuration has the module {name}, which vistok does not know"
                    )
                continue
            if target not in ("", _MODULES[name]):
                raise PublishedConfigError(f"the module {name} is a {target}; vistok knows it as {_MODULES[name]}")
            out[name] = settings
    kinds = {"enc_posemb_module": "sincos", "dec_patches_posemb_module": "sincos"}
    for name, kind in (kinds | {"dec_registers_posemb_module": "learnable_sum"}).items():
        _choice(out[name], "posemb_type", {kind: kind}, name, kind)
    _choice(out["dec_seq_packer"], "mask_mode", {"full": "full"}, "dec_seq_packer", "full")
    return out


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PublishedConfigError(f"FlexTok's configuration: {where} wants keys and values, got {value!r}")
    return value


def _choice(settings: Mapping[str, Any], key: str, known: Mapping[Any, Any], where: str, default: Any) -> Any:
    value = settings.get(key, default)
    if value not in known:
        raise PublishedConfigError(
            f"FlexTok's configuration has {key}: {value!r} at {where}; vistok knows {', '.join(map(str, known))}"
        )
    return known[value]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _levels(tree: Mapping[str, Any], code_dim: int) -> tuple[int, ...]:
    levels = _mapping(tree.get("regularizer"), "regularizer").get("levels")
    if levels is None and code_dim == len(_LEVELS):
        return _LEVELS
    if levels is None or len(levels) != code_dim:
        raise PublishedConfigError(
            f"a token has {code_dim} numbers, and the levels of each are {levels}; give the published configuration"
        )
    return tuple(int(level) for level in levels)


def _size(shapes: Shapes, prefix: str, width: int, settings: Mapping[str, Any]) -> RegisterTransformerSize:
    depth = count(shapes, rf"{prefix.replace('.', '[.]')}\.blocks\.(\d+)\.")
    return RegisterTransformerSize(width, depth, int(settings.get("head_dim", 64)))


def autoencoder_config(shapes: Shapes, prefix: str, published: Mapping[str, Any] | None = None) -> KlAutoencoderConfig:
    """Sizes of a KL autoencoder whose tensors lie under ``prefix``; what shapes cannot tell from its configuration."""
    levels = count(shapes, rf"{prefix}encoder\.down_blocks\.(\d+)\.")
    block_channels = tuple(
        shapes[f"{prefix}encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
    )
    default = KlAutoencoderConfig()
    published = published or {}
    scaling_factor, groups = find_key(published, "scaling_factor"), find_key(published, "norm_num_groups")
    return KlAutoencoderConfig(
        latent_channels=shapes[f"{prefix}post_quant_conv.weight"][1],
        block_channels=block_channels,
        layers_per_block=count(shapes, rf"{prefix}encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        norm_groups=default.norm_groups if groups is None else int(groups),
        scaling_factor=default.scaling_factor if scaling_factor is None else float(scaling_factor),
    )


# Ours -> published.


def _wrap_config(config: FlexTokConfig) -> dict[str, Any]:
    """The published configuration tree.

    Raises:
        PublishedConfigError: an option that it cannot tell.
    """
    if config.nested_dropout == "none" or config.vae == "none":
        raise PublishedConfigError("vae: none and nested_dropout: none are not part of it")
    if config.bound != "tanh" or config.init != "random":
        raise PublishedConfigError("bound: clamp and init: linear are not part of it")
    default = KlAutoencoderConfig()
    told = {}
    if config.vae.norm_groups != default.norm_groups:  # no published one says so; otherwise it would be read as 32
        told["norm_num_groups"] = config.vae.norm_groups
    scaling_factor = config.scaling_factor
    if scaling_factor is None and config.vae.scaling_factor != default.scaling_factor:
        scaling_factor = config.vae.scaling_factor
    return {
        "_target_": "flextok.flextok_wrapper.FlexTok",
        "vae": {
            "_target_": "flextok.vae_wrapper.StableDiffusionVAE",
            "images_read_key": "rgb",
            "vae_latents_read_key": "vae_latents_reconst",
            "vae_latents_write_key": "vae_latents",
            "images_reconst_write_key": "rgb_reconst",
            "latent_channels": config.channels,
            "scaling_factor": scaling_factor,
            "dtype_override": "fp32",
            "sample_posterior": config.sample_posterior,
            "force_vae_encode": False,
            "frozen": True,
            **told,
        },
        "encoder": _sequential(_encoder_modules(config)),
        "decoder": _sequential(_decoder_modules(config)),
        "regularizer": {
            "_target_": "flextok.regularizers.quantize_fsq.FSQ",
            "latents_read_key": "enc_registers",
            "quants_write_key": "enc_registers_quant",
            "tokens_write_key": "tokens",
            "levels": list(config.levels),
            "drop_quant_p": config.drop_quant_probability,
            "packed_call": True,
        },
        "flow_matching_noise_module": {
            "_target_": "flextok.flow_matching.noise_modules.MinRFNoiseModule",
            "clean_images_read_key": "vae_latents",
            "noised_images_write_key": "vae_latents_noised",
            "timesteps_write_key": "timesteps",
            "sigmas_write_key": "sigmas",
            "ln": config.logit_normal,
            "stratisfied": config.stratified,
            "mode_scale": config.mode_scale,
            "noise_write_key": "flow_noise",
        },
        "pipeline": {
            "_target_": "flextok.flow_matching.pipelines.MinRFPipeline",
            "_partial_": True,
            "latents_read_key": "enc_registers_quant",
            "timesteps_read_key": "timesteps",
            "noised_images_read_key": "vae_latents_noised",
            "reconst_write_key": "vae_latents_reconst",
            "out_channels": config.channels,
        },
    }


def _sequential(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    named = {}
    for name, settings in modules.items():
        known = _MODULES[name]
        named[name] = {"_target_": f"{_TARGETS[known]}.{known}", **settings}
    return {"_target_": "flextok.model.utils.wrappers.SequentialModuleDictWrapper", "module_dict": named}


def _axes_op(read: str, write: str, function: str) -> dict[str, Any]:
    operation = {"_target_": f"flextok.model.utils.dict_ops.{function}", "_partial_": True}
    return {"read_key": read, "write_key": write, "per_sample_op": operation}


def _patching(config: FlexTokConfig, width: int, read: str, patches: str, number: str) -> dict[str, Any]:
    return {
        "input_tensor_list_read_key": read,
        "patches_list_write_key": patches,
        "n_patches_write_key": number,
        "channels_in": config.channels,
        "dim": width,
        "patch_sizes": [config.patch_size] * 2,
        "flatten_patches": False,
    }


def _positions(read: str, write: str, width: int, sizes: list[int], kind: str) -> dict[str, Any]:
    keys = {"read_key": read, "write_key": write}
    return {**keys, "dim": width, "max_sizes": sizes, "posemb_type": kind, "posemb_scaling": "absolute"}


def _packing(side: str, inputs: list[str], mask: str) -> dict[str, Any]:
    keys = {
        "input_list_read_keys": inputs,
        "packed_seq_write_key": f"{side}_packed_seq",
        "block_mask_write_key": f"{side}_block_mask",
        "inner_packed_shapes_write_key": f"{side}_ps_inner",
        "outer_packed_shapes_write_key": f"{side}_ps_outer",
    }
    return {**keys, "mask_mode": mask, "pad_to_multiple": 128}


def _unpacking(side: str, read: str, outputs: list[str]) -> dict[str, Any]:
    return {
        "packed_seq_read_key": read,
        "inner_seq_write_keys": outputs,
        "inner_packed_shapes_read_key": f"{side}_ps_inner",
        "outer_packed_shapes_read_key": f"{side}_ps_outer",
    }


def _trunk(side: str, size: RegisterTransformerSize) -> dict[str, Any]:
    settings = {
        "input_seq_read_key": f"{side}_packed_seq",
        "output_seq_write_key": f"{side}_packed_seq",
        "dim": size.width,
        "depth": size.depth,
        "block_mask_read_key": f"{side}_block_mask",
        "use_act_checkpoint": False,
    }
    return settings | ({"head_dim": size.head_dim} if size.head_dim != 64 else {})


def _encoder_modules(config: FlexTokConfig) -> dict[str, dict[str, Any]]:
    width, patches, registers = config.encoder.width, "enc_vae_latents_patched", "enc_registers"
    return {
        "enc_channels_to_last": _axes_op("vae_latents", "vae_latents_bhwc", "channels_first_to_last"),
        "enc_patch_emb": _patching(config, width, "vae_latents_bhwc", patches, "enc_n_patches"),
        "enc_posemb_module": _positions(patches, patches, width, list(config.grid_size), "sincos"),
        "enc_register_module": {
            "input_tensor_list_read_key": patches,
            "register_sizes_read_write_key": "register_sizes",
            "registers_write_key": registers,
            "dim": width,
            "n_min": config.num_tokens,
            "n_max": config.num_tokens,
            "size_sampling_mode": "uniform",
            "ordering_mode": "nested",
        },
        "enc_seq_packer": _packing("enc", [patches, registers], "causal_last" if config.causal else "full"),
        "enc_transformer": _trunk("enc", config.encoder),
        "enc_unpacker": _unpacking("enc", "enc_packed_seq", [patches, registers]),
        "enc_to_latents": {
            "read_key": registers,
            "write_key": registers,
            "dim": width,
            "dim_out": len(config.levels),
            "use_mup_readout": False,
            "weight_init_style": "zero",
            "dtype_override": None,
        },
    }


def _decoder_modules(config: FlexTokConfig) -> dict[str, dict[str, Any]]:
    width, registers, noised = config.decoder.width, "dec_registers_proj", "vae_latents_noised"
    on_registers = {"read_write_key": registers, "dim": width}
    packing = _packing("dec", ["dec_patches", registers], "full")
    packing |= {"emb_packing_fn_write_key": "emb_packing_fn", "per_subseq_embs": config.modulation_kinds == 2}
    trunk = _trunk("dec", config.decoder) | {
        "adaLN_emb_read_key": "dec_temb",
        "adaLN_packing_fn_read_key": "emb_packing_fn",
        "adaLN_expansion": config.modulation_kinds,
        "intermediate_layer_write_key": "dec_packed_seq_repa_layer",
        "intermediate_layers": list(config.intermediate_layers),
    }
    repa_keys = ["dec_patches_repa_layer", "dec_registers_repa_layer"]
    return {
        "dec_from_latents": {
            "read_key": "enc_registers_quant",
            "write_key": registers,
            "dim_in": len(config.levels),
            "dim": width,
        },
        "dec_registers_posemb_module": _positions(registers, registers, width, [config.num_tokens], "learnable_sum"),
        "dec_nested_dropout": on_registers | {"size_sampling_mode": config.nested_dropout},
        "dec_latent_dropout": on_registers | {"dropout_prob": config.null_probability},
        "dec_noise_channels_to_last": _axes_op(noised, f"{noised}_bhwc", "channels_first_to_last"),
        "dec_noise_patch_emb": _patching(config, width, f"{noised}_bhwc", f"{noised}_patched", "dec_n_patches"),
        "dec_patches_posemb_module": _positions(
            f"{noised}_patched", "dec_patches", width, list(config.grid_size), "sincos"
        ),
        "dec_seq_packer": packing,
        "dec_time_embedder": {
            "timesteps_read_key": "timesteps",
            "time_embedding_write_key": "dec_temb",
            "dim": width,
            "frequency_embedding_size": config.time_features,
            "max_timestep": config.max_timestep,
        },
        "dec_transformer": trunk,
        "dec_unpacker": _unpacking("dec", "dec_packed_seq", ["dec_patches", registers]),
        "dec_repa_unpacker": _unpacking("dec", "dec_packed_seq_repa_layer", repa_keys),
        "dec_to_patches": {
            "read_key": "dec_patches",
            "write_key": "dec_patches",
            "dim": width,
            "channels_out": config.channels,
            "patch_sizes": [config.patch_size] * 2,
            "use_mup_readout": False,
            "weight_init_style": "zero",
            "adaLN_emb_read_key": "dec_temb",
        },
        "dec_channels_to_first": _axes_op("dec_patches", "vae_latents_reconst", "channels_last_to_first"),
    }


def _metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """The tree as published files carry it: a Python literal a part."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in config.items()}


FLEXTOK = Source(
    title="FlexTok (EPFL-VILAB/flextok_*)",
    family="flextok",
    signature=frozenset({f"{_ENC}enc_register_module.registers", f"{_DEC}dec_nested_dropout.dropout_mask_token"}),
    read_config=_read_config,
    key_map=lambda config: _KEY_MAP,
    wrap_config=_wrap_config,
    ignorable=f"{_DEC}{_REPA_PREFIX}",
    metadata=_metadata,
)


# The autoencoders by themselves.


def _read_vae_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> KlVaeConfig:
    return KlVaeConfig(image_size=image_size or 256, network=autoencoder_config(shapes, "", published))


def _wrap_vae_config(config: KlVaeConfig) -> dict[str, Any]:
    levels = len(config.network.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.network.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": config.network.latent_channels,
        "layers_per_block": config.network.layers_per_block,
        "norm_num_groups": config.network.norm_groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": config.network.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


KL_VAE = Source(
    title="a KL autoencoder of diffusers (EPFL-VILAB/flextok_vae_*)",
    family="kl_vae",
    signature=frozenset(
        {"quant_conv.weight", "post_quant_conv.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"}
    ),
    read_config=_read_vae_config,
    key_map=lambda config: KeyMap([Rule("*", "vae.net.*")]),
    wrap_config=_wrap_vae_config,
)
