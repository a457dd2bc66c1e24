"""BUILD: checkpoint and adapters -> artifact directory."""

from edge_vla.export.pipeline import export
from edge_vla.export.progress import Progress, Silent
from edge_vla.export.recipe import Recipe

__all__ = ["Progress", "Recipe", "Silent", "export"]
