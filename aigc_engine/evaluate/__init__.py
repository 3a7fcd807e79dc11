"""Quality of the zoo, measured with a bundled classifier and data that no model was trained on."""

from aigc_engine.evaluate.run import Row, evaluate

__all__ = ["Row", "evaluate"]
