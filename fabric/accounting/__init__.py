"""What stands between the store and the ledger's money: notes for each row, the duties beside the recorder, and
figures for those who ask."""

from fabric.accounting.duties import Bookkeeper
from fabric.accounting.notes import Beside, Notes

__all__ = ["Beside", "Bookkeeper", "Notes"]
