"""Which reference op call a test op call is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.capture.stage import OpFacts
from profiler.quant.naming import call_name


@dataclass(frozen=True)
class Partner:
    """Reference side of a test op call.

    `names` are the reference op calls that the test op stands for, in order; it is compared with the output of the
    last. `is_input`: the reference value is the test op's own input (an automatic QuantStub at the model's input).
    """

    names: tuple[str, ...] = ()
    is_input: bool = False
    reason: str = ""


class Pairing:
    """Joins test op calls to reference op calls by name; a fused op pairs with the end of its group.

    Args:
        reference: facts of the reference stage's op calls by name, of the batch at hand.
    """

    def __init__(self, reference: dict[str, OpFacts]) -> None:
        self.reference = reference
        self._partners: dict[str, Partner] = {}

    def partner(self, test: OpFacts) -> Partner:
        """Partner of a test op call. Calls must come in forward order."""
        found = self._find(test)
        self._partners[test.name] = found
        return found

    def _find(self, test: OpFacts) -> Partner:
        same = self.reference.get(test.name)
        if same is not None and same.fused_names == test.fused_names:
            return Partner((test.name,))
        if test.fused_names:
            names = tuple(call_name(name, test.call) for name in test.fused_names)
            missing = [name for name in names if name not in self.reference]
            return Partner(names) if not missing else Partner(reason=f"the reference has no op {', '.join(missing)}")
        if same is not None:
            return Partner((test.name,))
        if test.is_stub:
            return self._partner_of_stub(test)
        return Partner(reason="the reference has no op of this name")

    def _partner_of_stub(self, test: OpFacts) -> Partner:
        """An automatic stub stands for the value that it passes on."""
        producer = test.producers[0] if test.producers else None
        if producer is None:
            return Partner(is_input=True)
        source = self._partners.get(producer)
        if source is None or source.reason:
            return Partner(reason="an automatic stub behind an op without a partner")
        return Partner(source.names[-1:], is_input=source.is_input)
