"""FlexTok's published configuration tree, written for one of ours; ``flextok.py`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.errors import PublishedConfigError
from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.models.flextok_config import FlexTokConfig, RegisterTransformerSize

# The modules of the tree by name, and the published class of each.
MODULES = {
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


def wrap_config(config: FlexTokConfig) -> dict[str, Any]:
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
        known = MODULES[name]
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


def metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """The tree as published files carry it: a Python literal a part."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in config.items()}
