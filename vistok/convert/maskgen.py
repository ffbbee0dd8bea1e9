"""MaskGen's published names and configurations, of both kinds."""

from __future__ import annotations

from vistok.convert.key_map import KeyMap, Rule


def head_rules(published: str, ours: str) -> list[Rule]:
    """The rules of a diffusion head, which MAR's has too."""
    pairs = [
        ("input_proj.*", "input_proj.*"),
        ("cond_embed.*", "condition_proj.*"),
        ("time_embed.mlp.0.*", "time_embed.fc1.*"),
        ("time_embed.mlp.2.*", "time_embed.fc2.*"),
        ("res_blocks.{}.in_ln.*", "blocks.{}.norm.*"),
        ("res_blocks.{}.mlp.0.*", "blocks.{}.fc1.*"),
        ("res_blocks.{}.mlp.2.*", "blocks.{}.fc2.*"),
        ("res_blocks.{}.adaLN_modulation.1.*", "blocks.{}.modulation.*"),
        ("final_layer.adaLN_modulation.1.*", "modulation.*"),
        ("final_layer.linear.*", "out.*"),
    ]
    return [Rule(f"{published}{left}", f"{ours}{right}") for left, right in pairs]


HEAD_KEYS = KeyMap(head_rules("net.", ""))
