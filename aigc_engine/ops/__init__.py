"""Operations: each holds its signature, docstring, validation, reference and samples (see `dispatch.op`)."""

from aigc_engine.ops.activation import bias_act

__all__ = ["bias_act"]
