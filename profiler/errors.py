"""Every error that the project raises on purpose: one base class, one class per thing a caller may handle."""


class ProfilerError(Exception):
    """Base of all errors raised on purpose. The message says where, what was got, what was expected, what to do."""


class ConfigError(ProfilerError):
    """An argument, qconfig, march or config value that cannot be used."""


class DataError(ProfilerError):
    """The data is empty, is not made of tensors, or does not fit the model's forward."""


class ModelError(ProfilerError):
    """The model cannot be used as it is: not an nn.Module, NaN in its weights, or its forward raises."""


class StateError(ProfilerError):
    """A fake-quant state that would give a silently wrong result."""


class NotCalibratedError(StateError):
    """A scale is needed that no data and no user has given."""


class UnsupportedOpError(ProfilerError):
    """A quantized value reached an operation that has no quantized form."""


class PrepareError(ProfilerError):
    """Fusing, preparing or converting is not possible for this model."""


class RegistryError(ProfilerError):
    """A name was registered twice, or is not registered."""


class ReportError(ProfilerError):
    """A report cannot be read or written."""
