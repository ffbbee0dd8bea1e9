"""RAR: orders, their annealing, what a slot is told, modulation computed ahead; recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vistok.errors import ConfigError
from vistok.generate import rar
from vistok.generate.rar import Rar, RarConfig
from vistok.hub import empty_model
from vistok.registry import get_card, list_models
from vistok.training import TrainConfig

TINY = RarConfig(codebook_size=24, num_tokens=6, num_classes=5, width=32, depth=2, num_heads=2, hidden_width=48)


def make(seed: int = 0) -> Rar:
    torch.manual_seed(seed)
    model = Rar(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids_of(rows: int) -> torch.Tensor:
    return torch.randint(0, 24, (rows, 6), generator=torch.Generator().manual_seed(3))


def test_random_orders_give_way_to_the_raster_order() -> None:
    model = make()
    assert [model.random_ratio(p) for p in (0.0, 0.5, 0.625, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    ids, seeds = ids_of(400)[:1].expand(400, -1), torch.arange(400) * 104729
    orders = {p: model.draw_orders(ids, None, seeds, p) for p in (0.0, 0.625, 1.0)}
    raster = torch.arange(6)
    share = {p: float((order == raster).all(dim=1).float().mean()) for p, order in orders.items()}
    assert share[1.0] == 1.0 and share[0.0] < 0.02 and 0.4 < share[0.625] < 0.6
    assert torch.equal(orders[0.0].sort(dim=1).values, raster.expand(400, -1))
    firsts = orders[0.0][:, 0].bincount(minlength=6).float() / 400
    assert float((firsts - 1 / 6).abs().max()) < 0.07, "every position comes first equally often"


def test_orders_are_of_the_row_and_padding_comes_last() -> None:
    model, ids, seeds = make(), ids_of(5), torch.arange(5) * 7919
    whole = model.draw_orders(ids, None, seeds, 0.0)
    assert torch.equal(whole[2:4], model.draw_orders(ids[2:4], None, seeds[2:4], 0.0))
    lengths = torch.tensor([6, 3, 1, 4, 2])
    orders = model.draw_orders(ids, lengths, seeds, 0.0)
    for order, length in zip(orders.tolist(), lengths.tolist(), strict=True):
        assert sorted(order[:length]) == list(range(length))


def test_a_slot_knows_its_own_and_the_next_position_and_nothing_later() -> None:
    model, ids = make(), ids_of(1)
    orders = torch.tensor([[2, 0, 5, 1, 3, 4]])
    labels = torch.tensor([1])
    states = model.states(ids, labels, orders=orders)
    other_end = torch.tensor([[2, 0, 5, 1, 4, 3]])
    changed = model.states(ids, labels, orders=other_end)
    same = (states - changed).abs().amax(dim=(0, 2)) < 1e-6
    assert same.tolist() == [True] * 4 + [False] * 2, "slot k reads the positions up to k, and the one it predicts"


def test_the_orders_of_training_change_the_loss_and_evaluation_has_none() -> None:
    model, ids, labels = make(), ids_of(4), torch.arange(4)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config = type(TINY)(**{**vars(TINY), "class_dropout": 0.0})
    raster = float(model(ids, labels)["loss"].detach())
    model.train()
    losses = {
        p: float(model(ids, labels, sample_seeds=torch.arange(4), progress=p)["loss"].detach()) for p in (0.0, 1.0)
    }
    assert losses[1.0] == pytest.approx(raster, rel=1e-5) and abs(losses[0.0] - raster) > 1e-4


def test_modulation_in_small_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    whole = model.generate([0, 1, 0, 4], seeds=5, cfg_scale=3.0, cfg_schedule="power_cosine", return_log_probs=True)
    monkeypatch.setattr(rar, "_MEMO_BYTES", 1)
    pieces = model.generate([0, 1, 0, 4], seeds=5, cfg_scale=3.0, cfg_schedule="power_cosine", return_log_probs=True)
    assert whole.tokens == pieces.tokens
    torch.testing.assert_close(whole.log_probs, pieces.log_probs, atol=1e-5, rtol=1e-5)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = Rar(type(TINY)(**{**vars(TINY), "dropout": 0.0, "init": "local"})).train()
    ids = ids_of(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        optimizer.zero_grad()
        model(ids, torch.arange(5), progress=step / 150)["loss"].backward()
        optimizer.step()
    assert torch.equal(model.generate(list(range(5)), temperature=0.0).tokens.ids, ids)


@pytest.mark.parametrize("name", list_models("rar_*.imagenet"))
def test_cards_are_whole(name: str) -> None:
    card = get_card(name)
    config = RarConfig(**card.config)
    values = sum(tensor.numel() for tensor in empty_model(Rar, config).state_dict().values())
    wanted = {"rar_b": 260.9e6, "rar_l": 461.7e6, "rar_xl": 955.4e6, "rar_xxl": 1498.5e6}[name.partition(".")[0]]
    assert values == pytest.approx(wanted, rel=1e-4)
    assert card.sampling["cfg_schedule"] == "power_cosine"


@pytest.mark.parametrize(
    "changes", [{"anneal_start": 0.8}, {"num_heads": 3}, {"codebook_size": 1}, {"dropout": 1.0}, {"spare_slots": -1}]
)
def test_bad_configurations(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RarConfig(**{**vars(TINY), **changes})


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs" / "rar").glob("rar_*.yaml")))
def test_recipes_are_read(path: Path) -> None:
    from vistok.config import load_config

    config = load_config(TrainConfig, path)
    assert config.model["name"] == f"{path.stem}.imagenet" and config.steps == 250_000
