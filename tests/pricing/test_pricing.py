"""Prices: where they come from, and what they make of tokens and machine time."""

from __future__ import annotations

import logging
import timeit
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import Catalog, Price
from fabric.contracts.errors import ConfigError
from fabric.pricing import machine_usd, priced, token_usd
from fabric.pricing.price_list import list_price, list_version
from fabric.settings import load

LONG = Price.model_validate(
    {
        "input_per_million": 1,
        "output_per_million": 10,
        "cached_input_per_million": 0.5,
        "batch_discount": 0.5,
        "long_context": [
            {"above_input_tokens": 1000, "input_per_million": 2, "output_per_million": 20},
            {"above_input_tokens": 100, "input_per_million": 1.5, "output_per_million": 15},
        ],
    }
)


def catalog(deployment: dict[str, Any], **values: Any) -> Catalog:
    return Catalog.model_validate({"models": [{"name": "m", "deployments": [deployment]}], **values})


def price_of(catalog: Catalog) -> Price:
    return catalog.by_model["m"].deployments[0].price


class TestTokens:
    def test_cached_input_has_its_own_price_where_there_is_one(self) -> None:
        tokens = (1_000_000, 1_000_000, 400_000)
        plain = Price(input_per_million=1, output_per_million=10)
        assert token_usd(plain, *tokens) == pytest.approx(11)
        assert token_usd(plain.model_copy(update={"cached_input_per_million": 0.5}), *tokens) == pytest.approx(10.8)
        assert token_usd(plain.model_copy(update={"cached_input_per_million": 0.0}), *tokens) == pytest.approx(10.6)

    @pytest.mark.parametrize(("read", "rate"), [(100, 1), (101, 1.5), (1000, 1.5), (1001, 2)])
    def test_a_long_input_makes_all_tokens_dearer(self, read: int, rate: float) -> None:
        assert token_usd(LONG, read, 10) == pytest.approx((read * rate + 10 * 10 * rate) / 1e6)

    def test_batches_have_their_discount(self) -> None:
        tokens = (50, 10, 20)
        assert token_usd(LONG, *tokens, batch=True) == pytest.approx(token_usd(LONG, *tokens) / 2)

    def test_thresholds_differ(self) -> None:
        step = {"above_input_tokens": 5, "input_per_million": 1, "output_per_million": 1}
        with pytest.raises(ValueError, match="above_input_tokens"):
            Price.model_validate({"long_context": [step, step]})

    @given(st.integers(0, 10**7), st.integers(0, 10**6), st.floats(0, 1))
    def test_no_more_tokens_cost_less(self, read: int, written: int, cached: float) -> None:
        some = token_usd(LONG, read, written, int(cached * read))
        assert 0 <= some <= token_usd(LONG, read + 1, written + 1, int(cached * read)) + 1e-12

    def test_a_cost_is_quick(self) -> None:
        tokens = (500, 100, 50)
        best = min(timeit.repeat(lambda: token_usd(LONG, *tokens), number=1000, repeat=20)) / 1000
        assert best < 20e-6  # about 0.5 us where nothing else runs


class TestMachines:
    def test_a_request_pays_for_its_slot(self) -> None:
        price = Price(machine_usd_per_hour=3.6)
        assert machine_usd(price, 10, slots=4) == pytest.approx(0.0025)
        assert machine_usd(Price(), 10, slots=4) == 0

    def test_a_tiers_hours_are_power_and_the_rest(self) -> None:
        tiers = {"cpu": {"watts": 100, "usd_per_kwh": 0.5, "usd_per_hour": 0.15}}
        price = price_of(priced(catalog({"engine": "llamacpp", "tier": "cpu"}, tiers=tiers)))
        assert (price.machine_usd_per_hour, price.version) == (pytest.approx(0.2), "fabric.yaml")
        own = {"engine": "vllm", "tier": "gpu", "price": {"machine_usd_per_hour": 2.0}}
        assert price_of(priced(catalog(own, tiers={"gpu": {"usd_per_hour": 9}}))).machine_usd_per_hour == 2.0
        assert price_of(priced(catalog(own, tiers=tiers))).machine_usd_per_hour == 2.0

    def test_without_settings_the_own_machines_cost_nothing(self) -> None:
        assert price_of(priced(catalog({"engine": "llamacpp", "tier": "cpu"}))) == Price()


class TestWhereAPriceIsFrom:
    def test_the_list_knows_hosted_models(self) -> None:
        price = price_of(priced(catalog({"engine": "openai", "tier": "cloud", "model": "gpt-5"})))
        assert (price.input_per_million, price.output_per_million) == (1.25, 10.0)
        assert (price.cached_input_per_million, price.batch_discount) == (0.125, 0.5)
        assert price.version == list_version()

    def test_the_operators_own_goes_before_it(self) -> None:
        own = {"engine": "openai", "tier": "cloud", "model": "gpt-5", "price": {"input_per_million": 9}}
        price = price_of(priced(catalog(own)))
        assert (price.input_per_million, price.output_per_million, price.version) == (9, 0, "fabric.yaml")
        own["price"] = {"input_per_million": 9, "version": "contract 2026"}
        assert price_of(priced(catalog(own))).version == "contract 2026"
        assert price_of(priced(catalog({**own, "price": {"input_per_million": 0}}))).input_per_million == 0

    def test_doing_it_again_changes_nothing(self) -> None:
        once = priced(
            catalog(
                {"engine": "anthropic", "tier": "cloud", "model": "claude-sonnet-4-5"},
                tiers={"cloud": {"usd_per_hour": 1}},
                baseline={"model": "gpt-5"},
            )
        )
        assert priced(once) == once

    def test_a_model_that_nobody_knows_is_free_and_named(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        unknown = {"engine": "openai", "tier": "cloud", "base_url": "http://127.0.0.1:1/v1", "model": "gpt-5"}
        assert price_of(priced(catalog(unknown))) == Price()
        assert "m-cloud" in caplog.text

    def test_long_contexts_are_in_the_list(self) -> None:
        price = list_price("claude-sonnet-4-5", provider="anthropic")
        assert price is not None
        (step,) = price.long_context
        assert (step.above_input_tokens, step.input_per_million, step.output_per_million) == (200_000, 6.0, 22.5)
        assert step.cached_input_per_million == 0.6

    @pytest.mark.parametrize("hour", range(0, 24, 4))
    def test_an_hours_discount_is_left_out(self, hour: int) -> None:
        at = datetime(2026, 11, 10, hour, tzinfo=UTC)
        price = list_price("deepseek-chat", provider="deepseek", at=at)
        assert price is not None
        assert (price.input_per_million, price.output_per_million) == (0.27, 1.1)

    @pytest.mark.parametrize(
        ("provider", "model", "read", "written", "cached"),
        [
            ("openai", "gpt-5", 1000, 200, 400),
            ("anthropic", "claude-sonnet-4-5", 300_000, 1000, 50_000),
            ("google", "gemini-2.5-pro", 200_000, 1000, 0),
            ("google", "gemini-2.5-pro", 200_001, 1000, 0),
            ("openai", "text-embedding-3-small", 5000, 0, 0),
        ],
    )
    def test_costs_are_what_the_list_itself_counts(
        self, provider: str, model: str, read: int, written: int, cached: int
    ) -> None:
        from genai_prices import Usage, calc_price

        price = list_price(model, provider=provider)
        assert price is not None
        usage = Usage(input_tokens=read, output_tokens=written, cache_read_tokens=cached)
        theirs = calc_price(usage, model, provider_id=provider)
        assert token_usd(price, read, written, cached) == pytest.approx(float(theirs.total_price))
        batch = calc_price(usage, model, provider_id=provider, price_context={"processing": "batch"})
        ours = token_usd(price, read, written, cached, batch=True)
        assert Decimal(ours) >= batch.total_price - Decimal("1e-9")


class TestTheBaseline:
    def test_is_a_model_of_the_list_or_a_price(self) -> None:
        local = {"engine": "llamacpp", "tier": "cpu"}
        found = priced(catalog(local, baseline={"model": "gpt-5", "provider": "openai"})).baseline
        assert found is not None and found.price is not None
        assert found.price.output_per_million == 10
        own = {"model": "ours", "price": {"input_per_million": 3}}
        found = priced(catalog(local, baseline=own)).baseline
        assert found is not None and found.price is not None
        assert (found.price.input_per_million, found.price.version) == (3, "fabric.yaml")

    def test_one_that_the_list_doesnt_know_is_an_error_with_its_line(self, tmp_path: Path) -> None:
        file = tmp_path / "fabric.yaml"
        file.write_text("log_level: INFO\nbaseline: {model: no-such-model}\n")
        with pytest.raises(ConfigError, match=r"fabric.yaml:2: .*no-such-model"):
            load(file, {})

    def test_the_file_has_hours_baseline_and_prices(self, tmp_path: Path) -> None:
        file = tmp_path / "fabric.yaml"
        file.write_text(
            "tiers: {cpu: {watts: 50, usd_per_kwh: 0.4, usd_per_hour: 0.01}}\n"
            "baseline: {model: gpt-5, provider: openai}\nusage_retention_days: 30\n"
        )
        settings = load(file, {})
        assert settings.catalog.baseline is not None and settings.catalog.baseline.price is not None
        assert settings.catalog.models[0].deployments[0].price.machine_usd_per_hour == pytest.approx(0.03)
        assert settings.usage_retention_days == 30
        assert load(file, {"FABRIC_USAGE_RETENTION_DAYS": "7"}).usage_retention_days == 7
