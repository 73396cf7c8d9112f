"""`compile` turns a trained network into its fast form; `load` does so from a file."""

from wiring.compiled.forms import Choice
from wiring.compiled.network import CompiledNetwork, compile, load

__all__ = ["Choice", "CompiledNetwork", "compile", "load"]
