"""The facts that flow from capture to report: frozen dataclasses of plain Python values, no torch.

Everything that a page, table or archive shows is in `ReportData`; every output can be made again from it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SCHEMA_VERSION = 1

Severity = Literal["E", "W", "I"]
Cost = Literal["F", "Fl", "Q", "C", "0"]
Status = Literal["compared", "fused", "unmatched", "uncalled", "shape_mismatch", "unsupported"]
Mode = Literal["FvsQ", "QvsQ", "CvsQ"]

SEVERITY_ORDER: tuple[Severity, ...] = ("E", "W", "I")
COST_TEXT: dict[str, str] = {
    "F": "retrain the float model",
    "Fl": "edit the float code, keep the weights",
    "Q": "repeat calibration or QAT",
    "C": "change the config and calibrate again",
    "0": "nothing to retrain",
}


@dataclass(frozen=True)
class MetricInfo:
    """What a metric is called, its unit, which way is good, and the limit at which a row is flagged."""

    name: str
    unit: str
    higher_is_better: bool
    limit: float | None
    description: str


@dataclass(frozen=True)
class QuantParams:
    """How one tensor is quantized. `scale` has one value per tensor, or one per channel of `ch_axis`."""

    dtype: str
    scale: tuple[float, ...]
    ch_axis: int
    quant_min: int
    quant_max: int
    is_calibrated: bool = True
    is_fixed: bool = False
    observer: str = ""

    @property
    def is_per_channel(self) -> bool:
        return self.ch_axis >= 0


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's finite values in equal bins over [low, high]."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ChannelStats:
    """Per-channel facts of one tensor (axis 1), reduced to what findings and tables need."""

    num_channels: int
    num_live: int
    num_coarse: int
    absmax_max: float
    absmax_median: float
    widest_channel: int


@dataclass(frozen=True)
class TensorStats:
    """Statistics of one tensor over all batches, in real values (codes are multiplied by their scale)."""

    num_values: int
    num_nan: int
    num_inf: int
    minimum: float
    maximum: float
    mean: float
    var: float
    clip_ratio: float = 0.0
    histogram: Histogram | None = None
    channels: ChannelStats | None = None

    @property
    def absmax(self) -> float:
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def std(self) -> float:
        return float(self.var**0.5) if self.var > 0 else 0.0


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of one op call in one stage: a row of a statistic table."""

    index: int
    name: str
    type_name: str
    attr: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    ch_axis: int
    stats: TensorStats


@dataclass(frozen=True)
class PairStats:
    """Error of a test tensor against its reference, merged over all batches.

    `cosine` and `sqnr_db` (dB): higher is better. `mse`, `l1`, `atol` (largest absolute error), `kl` (nats): lower is
    better; `kl` is None where no distribution was kept. `atol_scales` and `rms_lsb` are in steps of the test output's
    scale, None where it has no single scale.
    """

    num_values: int
    cosine: float
    sqnr_db: float
    mse: float
    l1: float
    atol: float
    kl: float | None
    atol_scales: float | None
    rms_lsb: float | None


@dataclass(frozen=True)
class QuantError:
    """What the test output's own quantizer does to the reference output: its range against its resolution."""

    codes_per_std: float
    clip_ratio: float
    clip_energy: float
    rounding_energy: float
    sqnr_db: float

    @property
    def is_clipped(self) -> bool:
        return self.clip_energy > self.rounding_energy


@dataclass(frozen=True)
class LayerRecord:
    """One op call of a compared pair of stages. `name` carries the call number: `conv`, `conv(1)`."""

    index: int
    name: str
    op_name: str
    call: int
    reference_type: str
    test_type: str
    status: Status
    reason: str = ""
    source: str = ""
    kind: str = ""
    fused_names: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    accumulated: PairStats | None = None
    injected: PairStats | None = None
    quant_error: QuantError | None = None
    qparams: QuantParams | None = None
    weight_qparams: QuantParams | None = None
    reference_input: TensorStats | None = None
    reference_output: TensorStats | None = None
    test_output: TensorStats | None = None
    num_params: int = 0
    is_output: bool = False

    @property
    def type_name(self) -> str:
        return self.test_type or self.reference_type


@dataclass(frozen=True)
class WeightRecord:
    """A weight in both stages: cosine similarity, largest difference, and that in steps of its scale."""

    name: str
    cosine: float
    sqnr_db: float
    atol: float
    atol_scales: float | None
    reference_absmax: float


@dataclass(frozen=True)
class CalledCount:
    """How often a module ran in one forward: 0 is unused, more than 1 is shared."""

    name: str
    type_name: str
    count: int
    alias_of: str = ""


@dataclass(frozen=True)
class UnfusedGroup:
    """Ops that could be one: names and types in order, and why they are not."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    cause: str


@dataclass(frozen=True)
class QConfigRow:
    """One op call's output quantization as it really is; `input_dtypes` holds one entry per input tensor."""

    name: str
    type_name: str
    input_dtypes: tuple[str, ...]
    out_dtype: str
    ch_axis: str
    observer: str = ""


@dataclass(frozen=True)
class WeightQConfigRow:
    """How one op's weight is quantized."""

    name: str
    type_name: str
    weight_dtype: str
    ch_axis: int
    observer: str = ""


@dataclass(frozen=True)
class QConfigMessage:
    """Something about an op's qconfig that deserves a look."""

    name: str
    type_name: str
    message: str


@dataclass(frozen=True)
class QConfigCheck:
    """The three tables of `qconfig_info.txt`."""

    outputs: tuple[QConfigRow, ...] = ()
    weights: tuple[WeightQConfigRow, ...] = ()
    messages: tuple[QConfigMessage, ...] = ()


@dataclass(frozen=True)
class ModelRecord:
    """One stage of the model: what it is, its tensors in forward order, and how often its modules ran."""

    stage: str
    title: str
    tensors: tuple[TensorRecord, ...] = ()
    called: tuple[CalledCount, ...] = ()
    printout: str = ""


@dataclass(frozen=True)
class Coverage:
    """How many op calls ran in the test stage, how many were compared, and why the others were not."""

    executed: int = 0
    compared: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two adjacent stages on the same batches. `mode` is the original's name for the pair."""

    mode: Mode
    reference: ModelRecord
    test: ModelRecord
    layers: tuple[LayerRecord, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: tuple[WeightRecord, ...] = ()
    unfused: tuple[UnfusedGroup, ...] = ()
    qconfig: QConfigCheck = QConfigCheck()
    coverage: Coverage = Coverage()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """One number behind a finding, with its unit and the limit it was held against (empty: no limit)."""

    name: str
    value: float | int | str
    unit: str = ""
    limit: str = ""


@dataclass(frozen=True)
class Patch:
    """A repair: `code` to paste, and `action`, `target`, `arguments` for a program that applies it."""

    action: str
    target: str
    code: str
    arguments: dict[str, str | float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One cause of a problem, decided by a rule of the catalogue.

    `op` is empty for the whole model. `related` are lines about other findings with the same cause, folded under this
    one.
    """

    id: str
    title: str
    severity: Severity
    op: str
    advice: str
    cost: Cost
    evidence: tuple[Evidence, ...] = ()
    source: str = ""
    origin: Literal["own", "propagated"] = "own"
    patch: Patch | None = None
    related: tuple[str, ...] = ()
    expected_gain_db: float | None = None
    measured_gain: str = ""


@dataclass(frozen=True)
class StageMetric:
    """What the user's `evaluate` returned for one stage."""

    stage: str
    value: float


@dataclass(frozen=True)
class StateRecord:
    """Fake-quant state of the prepared model as the user gave it: what the state findings read.

    `events` are (state, root training) of each `set_fake_quantize` call. `observed_calibration` and `observed_qat`
    are the largest number of batches that one activation fake quant observed in that state.
    """

    purpose: str = ""
    root_training: bool = False
    events: tuple[tuple[str, bool], ...] = ()
    num_activations: int = 0
    uncalibrated: tuple[str, ...] = ()
    num_fake_quant_on: int = 0
    num_observer_on: int = 0
    num_training: int = 0
    observed_calibration: int = 0
    observed_qat: int = 0
    has_backward_run: bool = False


@dataclass(frozen=True)
class Effect:
    """What a qconfig entry did to one op: the dtype that was asked for, the actual one, and why they differ."""

    op: str
    requested: str
    actual: str
    reason: str


@dataclass(frozen=True)
class ReportData:
    """All that a report holds; saved as report.json with a schema version."""

    title: str
    verdict: str
    created: str
    schema_version: int = SCHEMA_VERSION
    findings: tuple[Finding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    metrics: tuple[MetricInfo, ...] = ()
    stage_metrics: tuple[StageMetric, ...] = ()
    effects: tuple[Effect, ...] = ()
    state: StateRecord | None = None
    journal: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Comparison | None:
        """The first comparison: float against fake quant where there is one."""
        return self.comparisons[0] if self.comparisons else None
