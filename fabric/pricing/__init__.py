"""What things cost. Prices are resolved once, when the catalogue is read; a cost is then a few multiplications."""

from fabric.pricing.cost import machine_usd, token_usd
from fabric.pricing.resolve import priced

__all__ = ["machine_usd", "priced", "token_usd"]
