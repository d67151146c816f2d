"""`postgrad label`: the labelling workbench from the command line. Heavy imports wait until a command needs them."""

from postgrad.label_cli import add, exchange, gold, judge, people, route, serve, stats
from postgrad.label_cli.app import label_app

__all__ = ["add", "exchange", "gold", "judge", "label_app", "people", "route", "serve", "stats"]
