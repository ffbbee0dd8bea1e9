"""FlexTok's published names and configurations.

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

from vistok.convert.flextok_tree import MODULES, metadata, wrap_config
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.convert.kl_vae import autoencoder_config
from vistok.errors import CheckpointError, PublishedConfigError
from vistok.models.flextok_config import FlexTokConfig, RegisterTransformerSize

_ENC, _DEC = "encoder.module_dict.", "decoder.module_dict."
_PARTS = ("vae", "encoder", "decoder", "regularizer", "flow_matching_noise_module", "pipeline")
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
_CLASSES = frozenset(MODULES.values()) | _OTHER_CLASSES
# What the published configurations have everywhere, and ours can do no other way.
_FIXED = {
    "posemb_scaling": ("absolute",),
    "use_mup_readout": (False,),
    "ordering_mode": ("nested",),
    "flatten_patches": (False,),
}
_REPA_PREFIX = "dec_repa"
_LEVELS = FlexTokConfig().levels


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
        if not str(key).startswith(_REPA_PREFIX) or key in MODULES:
            _check_classes(item, f"{where}.{key}".lstrip("."))


def _modules(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Settings of all known modules by name; {} for those that are not told."""
    out: dict[str, Mapping[str, Any]] = {name: {} for name in MODULES}
    for side in ("encoder", "decoder"):
        part = _mapping(tree.get(side), side)
        for name, settings in _mapping(part.get("module_dict"), f"{side}.module_dict").items():
            settings = _mapping(settings, name)
            target = str(settings.get("_target_", "")).rpartition(".")[2]
            if name not in MODULES:
                if not name.startswith(_REPA_PREFIX):
                    raise PublishedConfigError(
                        f"FlexTok's configuration has the module {name}, which vistok does not know"
                    )
                continue
            if target not in ("", MODULES[name]):
                raise PublishedConfigError(f"the module {name} is a {target}; vistok knows it as {MODULES[name]}")
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


FLEXTOK = Source(
    title="FlexTok (EPFL-VILAB/flextok_*)",
    family="flextok",
    signature=frozenset({f"{_ENC}enc_register_module.registers", f"{_DEC}dec_nested_dropout.dropout_mask_token"}),
    read_config=_read_config,
    key_map=lambda config: _KEY_MAP,
    wrap_config=wrap_config,
    ignorable=f"{_DEC}{_REPA_PREFIX}",
    metadata=metadata,
)
