from __future__ import annotations

import pytest
from torch import nn

from profiler.errors import ConfigError
from profiler.quant import March, convert, get_march, march, prepare_qat, prepare_qat_fx, set_march


@pytest.mark.parametrize("given", ["bayes", March.BAYES])
def test_set_march_name_or_member_is_returned_by_get_march(given: March | str) -> None:
    set_march(given)
    assert get_march() is March.BAYES


def test_set_march_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'byes' is unknown; use one of bernoulli, .*bayes, bayes-e"):
        set_march("byes")
    assert get_march() is March.BAYES


@pytest.mark.parametrize("call", [prepare_qat, prepare_qat_fx, convert])
def test_march_unset_makes_prepare_and_convert_name_set_march(call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(march, "_current", None)
    assert get_march() is None
    with pytest.raises(ConfigError, match="call set_march"):
        call(nn.Linear(2, 2))  # type: ignore[operator]


def test_march_has_int16_activations_as_the_table_says() -> None:
    without = {m for m in March if not m.has_int16_activations}
    assert without == {March.BERNOULLI, March.BERNOULLI2}
