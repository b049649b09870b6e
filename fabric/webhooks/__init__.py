"""Webhooks: from the ledger's list of deliveries to those who want to be told."""

from fabric.webhooks.courier import Courier, announce, keys_of, tell_of_budgets

__all__ = ["Courier", "announce", "keys_of", "tell_of_budgets"]
