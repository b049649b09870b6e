"""Costs in the columns of FOCUS 1.2 (the FinOps Open Cost and Usage Specification), for tools that read bills. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

#: Groups that a row of the export is for: the finest that are added up by day.
GROUPS = ("day", "tenant", "key", "tier", "deployment", "model", "endpoint")


def focus(row: Mapping[str, Any]) -> dict[str, Any]:
    """One charge a day: what one key used of one deployment. The list cost is the cloud equivalent, where known."""
    day = date.fromisoformat(row["day"])
    month = day.replace(day=1)
    after = (month + timedelta(days=32)).replace(day=1)
    tokens = row["input_tokens"] + row["output_tokens"]
    own = row["tier"] in ("cpu", "gpu")
    cost = row["cost_usd"]
    return {
        "BilledCost": cost,
        "BillingAccountId": "inference-fabric",
        "BillingAccountName": "Inference fabric",
        "BillingCurrency": "USD",
        "BillingPeriodStart": _start(month),
        "BillingPeriodEnd": _start(after),
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{row['model']} on {row['deployment'] or 'nothing'} ({row['endpoint']})",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _start(day),
        "ChargePeriodEnd": _start(day + timedelta(days=1)),
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": "Inference fabric" if own else row["deployment"],
        "ListCost": row["cloud_equivalent_usd"] or cost,
        "PricingCategory": "Standard",
        "PricingQuantity": tokens / 1e6,
        "PricingUnit": "1000000 Tokens",
        "ProviderName": "Inference fabric" if own else row["deployment"],
        "PublisherName": "Inference fabric" if own else row["deployment"],
        "ResourceId": row["deployment"],
        "ResourceName": row["deployment"],
        "ResourceType": "Model deployment",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": row["model"],
        "ServiceSubcategory": "Generative AI",
        "SkuId": f"{row['deployment']}:{row['endpoint']}" if row["deployment"] else None,
        "SubAccountId": row["tenant"],
        "SubAccountName": row["tenant"],
        "Tags": json.dumps({"key": row["key"], "tier": row["tier"], "endpoint": row["endpoint"]}),
    }


def _start(day: date) -> str:
    return f"{datetime(day.year, day.month, day.day, tzinfo=UTC):%Y-%m-%dT%H:%M:%SZ}"
