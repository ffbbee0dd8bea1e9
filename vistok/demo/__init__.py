"""The two demos: on the weights that come with vistok, and from nothing."""

from vistok.demo.shipped import run_demo
from vistok.demo.training import run_training_demo

__all__ = ["run_demo", "run_training_demo"]
