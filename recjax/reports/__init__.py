"""Finished runs compared: gathered, tested against each other, shown as tables and a page."""
