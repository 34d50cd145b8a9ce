"""Builds reports out of thin air: a rich small one with everything that is awkward, and one of any depth."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from profiler.records import (
    CalledCount,
    ChannelStats,
    Comparison,
    Coverage,
    Effect,
    Evidence,
    Finding,
    Histogram,
    LayerRecord,
    MetricInfo,
    ModelRecord,
    PairStats,
    Patch,
    QConfigCheck,
    QConfigMessage,
    QConfigRow,
    QuantError,
    QuantParams,
    ReportData,
    StageMetric,
    TensorRecord,
    TensorStats,
    UnfusedGroup,
    WeightQConfigRow,
    WeightRecord,
)

HOSTILE = "</script><b>x"
UNICODE = "stage.größe_卷积"
MULTILINE = 'block.a\nb|c,"d" $e_f$'
METRICS = (
    MetricInfo("cosine", "", True, 0.995, "cosine of the flattened tensors"),
    MetricInfo("sqnr_db", "dB", True, 20.0, "10 log10(sum ref^2 / sum err^2)"),
    MetricInfo("kl", "nats", False, 0.2, "KL(reference || test)"),
)


def pair(sqnr_db: float, scale: float | None = 0.05, power: float = 1.0) -> PairStats:
    """Gives an error of that many dB below a signal of that power."""
    mse = power / 10 ** (sqnr_db / 10)
    steps = (None, None) if scale is None else (4 * mse**0.5 / scale, mse**0.5 / scale)
    cosine = 1.0 if math.isinf(sqnr_db) else 1 / math.sqrt(1 + mse / power)
    return PairStats(4096, cosine, sqnr_db, mse, 0.8 * mse**0.5, 4 * mse**0.5, mse, *steps)


def stats(rng: random.Random, std: float = 1.0, shift: float = 0.0, bins: int = 64) -> TensorStats:
    """Gives statistics and a histogram of a bell of that width."""
    low, high = shift - 4 * std, shift + 4 * std
    middle = (bins - 1) / 2
    counts = tuple(
        int(4096 * math.exp(-(((bin_ - middle) / bins * 8) ** 2) / 2) * rng.uniform(0.9, 1.1)) for bin_ in range(bins)
    )
    channels = ChannelStats(32, 30, 1, 4 * std, std, 7)
    return TensorStats(sum(counts), 0, 0, low, high, shift, std**2, 0.001, Histogram(low, high, counts), channels)


def qparams(absmax: float = 4.0) -> QuantParams:
    return QuantParams("qint8", (absmax / 127.5,), -1, -128, 127, observer="MinMaxObserver(averaging_constant=0.01)")


def layer(
    rng: random.Random, index: int, name: str, accumulated: float, injected: float, std: float = 1.0
) -> LayerRecord:
    """Gives a compared op call with all that a record can hold."""
    op_name, _, suffix = name.removesuffix(")").partition("(")
    call = int(suffix) if suffix.isdigit() else 0
    params = qparams(4 * std)
    return LayerRecord(
        index=index,
        name=name,
        op_name=op_name,
        call=call,
        reference_type="Conv2d",
        test_type="QATConv2d",
        status="compared",
        source="model.py:42 in forward",
        kind="rounding" if injected < 20 else "propagated" if accumulated < 20 else "clean",
        fused_names=(f"{op_name}.bn",),
        inputs=(f"op{index - 1}",) if index else (),
        accumulated=pair(accumulated, params.scale[0], std**2),
        injected=pair(injected, params.scale[0], std**2),
        quant_error=QuantError(std / params.scale[0], 0.001, 1e-6, 1e-5, 38.5),
        qparams=params,
        weight_qparams=QuantParams("qint8", (0.01, 0.02, 0.03), 0, -128, 127),
        reference_input=stats(rng, std),
        reference_output=stats(rng, std),
        test_output=stats(rng, std * 1.1, 0.1),
        num_params=4608,
    )


def tensor_rows(layers: tuple[LayerRecord, ...], dtype: str) -> tuple[TensorRecord, ...]:
    """Gives an input and an output row per op call."""
    rows = []
    for item in layers:
        values = item.test_output if dtype == "qint8" else item.reference_output
        if values is None:
            continue
        scale = item.qparams.scale if dtype == "qint8" and item.qparams else ()
        for attr in ("input", "output"):
            rows.append(
                TensorRecord(len(rows), item.name, item.type_name, attr, (8, 32, 16, 16), dtype, scale, -1, values)
            )
    return tuple(rows)


def big_report(num_ops: int, seed: int = 7) -> ReportData:
    """Gives a report of two comparisons with `num_ops` op calls each; a few ops are bad, the rest healthy."""
    rng = random.Random(seed)
    names = [
        f"backbone.layer{index // 40}.block{index // 8 % 5}.conv{index % 8}.conv_{index}" for index in range(num_ops)
    ]
    comparisons = []
    for mode, dtypes in (("FvsQ", ("torch.float32", "qint8")), ("QvsQ", ("qint8", "qint8"))):
        layers, level = [], 45.0
        for index, name in enumerate(names):
            is_bad = index % max(num_ops // 7, 1) == 5
            injected = rng.uniform(8, 14) if is_bad else rng.uniform(32, 44)
            level = max(9.0, min(level, injected + 8) - rng.uniform(0, 0.4) + 0.3)
            layers.append(layer(rng, index, name, level, injected, rng.uniform(0.1, 6)))
        comparisons.append(_comparison(mode, tuple(layers), dtypes))
    bad = [item for item in comparisons[0].layers if item.injected and item.injected.sqnr_db < 20]
    found = tuple(replace(_findings()[0], op=item.name, severity="E") for item in bad)
    return ReportData(
        title=f"synthetic network of {num_ops} ops",
        verdict=f"int8 loses 3.1 points; {len(bad)} ops inject most of the error, first {bad[0].name}.",
        created="2026-03-01T12:00:00+00:00",
        findings=found,
        comparisons=tuple(comparisons),
        metrics=METRICS,
        stage_metrics=(StageMetric("float", 0.97531), StageMetric("calib", 0.95), StageMetric("quantized", 0.9444)),
        versions={"torch": "2.13.0", "python": "3.11"},
    )


def rich_report() -> ReportData:
    """Gives a small report that holds each awkward thing at least once."""
    rng = random.Random(3)
    layers = _rich_layers(rng)
    first = replace(
        _comparison("FvsQ", layers, ("torch.float32", "qint8")),
        unfused=(
            UnfusedGroup(("branch.conv", "branch.bn"), ("Conv2d", "BatchNorm2d"), "second consumer of branch.conv"),
        ),
        notes=("FX could not trace branch.head; it stayed float",),
        coverage=Coverage(len(layers), 8, {"uncalled": 1, "unmatched": 1, "shape mismatch": 1, "unsupported type": 1}),
    )
    second = replace(_comparison("QvsQ", layers[:4], ("qint8", "qint8")), coverage=Coverage(4, 4, {}))
    return ReportData(
        title="pitfalls <net>",
        verdict=f"int8 loses 7.3 points; most of the error enters at {HOSTILE}, whose output is clipped.",
        created="2026-03-01T12:00:00+00:00",
        findings=_findings(),
        comparisons=(first, second),
        metrics=METRICS,
        stage_metrics=(StageMetric("float", 0.99996), StageMetric("calib", 0.951), StageMetric("quantized", 0.9243)),
        effects=(Effect("head.conv", "qint16", "qint8", "the march has no int16 form of this op"),),
        journal=("prepare_qat_fx(march=bayes)", "set_fake_quantize(CALIBRATION)", "8 batches observed"),
        versions={"torch": "2.13.0", "quant-profiler": "0.1"},
        arguments={"march": "BAYES", "num_batches": "8"},
        fingerprints={"inputs": "9f2c", "weights": "aa01"},
        notes=("The digits are upsampled to 32x32.",),
    )


def _rich_layers(rng: random.Random) -> tuple[LayerRecord, ...]:
    layers = [
        layer(rng, 0, "quant", 48.0, 48.0),
        layer(rng, 1, "shared.conv", 34.0, 36.0),
        layer(rng, 2, "shared.conv(1)", 24.0, 24.5, 9.0),
        layer(rng, 3, HOSTILE, 12.0, 12.2, 60.0),
        layer(rng, 4, UNICODE, 11.5, 33.0),
        layer(rng, 5, MULTILINE, 11.0, 30.0, 0.02),
        replace(layer(rng, 6, "branch.bn(I)", 10.9, math.inf), test_type="Identity"),
        replace(layer(rng, 7, "head.conv", math.nan, 21.0), qparams=None, is_output=True, test_output=None),
    ]
    broken = layers[7].reference_output
    assert broken is not None
    nan_stats = replace(broken, num_nan=3, num_inf=1, maximum=math.inf, mean=math.nan, histogram=None)
    layers[7] = replace(layers[7], reference_output=nan_stats, test_output=nan_stats)
    per_channel = QuantParams("qint8", (0.1, 0.2, 0.3), 1, -128, 127)
    layers[1] = replace(layers[1], qparams=per_channel, accumulated=pair(34.0, None), injected=pair(36.0, None))
    missing = (
        ("aux.unused", "uncalled", "the module did not run in either forward"),
        ("deploy.reshape", "unmatched", "no op of that name in the float model"),
        ("head.resize", "shape_mismatch", "[1, 8, 4, 4] against [1, 8, 8, 8]"),
        ("post.topk", "unsupported", "integer output"),
        ("branch.conv", "fused", "compared at branch.bn"),
    )
    for name, status, reason in missing:
        index = len(layers)
        layers.append(LayerRecord(index, name, name, 0, "Module", "", status, reason))  # type: ignore[arg-type]
    return tuple(layers)


def _comparison(mode: str, layers: tuple[LayerRecord, ...], dtypes: tuple[str, str]) -> Comparison:
    stages = {"FvsQ": ("float", "calib"), "QvsQ": ("calib", "quantized")}[mode]
    called = tuple(CalledCount(item.op_name, item.type_name, 1 + item.call) for item in layers)
    models = [
        ModelRecord(stage, f"{stage} model", tensor_rows(layers, dtype), called, f"Model(\n  ({HOSTILE}): {stage}\n)")
        for stage, dtype in zip(stages, dtypes, strict=True)
    ]
    rows = tuple(QConfigRow(item.name, item.type_name, ("qint8", "qint8"), "qint8", "-1", "MinMax") for item in layers)
    check = QConfigCheck(
        (*rows, QConfigRow("head.out", "Conv2d", ("qint8",), "activation = None", "-1")),
        tuple(WeightQConfigRow(item.name, item.type_name, "qint8", 0) for item in layers if item.weight_qparams),
        (QConfigMessage("head.out", "Conv2d", "activation is None (output layer?)"),),
    )
    weights = tuple(
        WeightRecord(f"{item.name}.weight", 0.99999 - item.index / 1e6, 41.0, 0.013, 1.2, 2.2) for item in layers
    )
    return Comparison(
        mode=mode,  # type: ignore[arg-type]
        reference=models[0],
        test=models[1],
        layers=layers,
        outputs=tuple(item.name for item in layers[-1:]),
        weights=weights,
        qconfig=check,
        coverage=Coverage(len(layers), sum(item.status == "compared" for item in layers)),
    )


def _findings() -> tuple[Finding, ...]:
    return (
        Finding(
            "RG2",
            "The output range is clipped",
            "E",
            HOSTILE,
            "Set fixed scale 0.47: the observer saw less than the data holds.",
            "C",
            (Evidence("clip_ratio", 0.0312, "", "0.01"), Evidence("own SQNR", 12.2, "dB", ">= 20")),
            f"model.py:17 {HOSTILE}",
            patch=Patch("set_qconfig", HOSTILE, "qconfig = {'x': fixed(0.47)}  # </script><b>\nprepare(model)"),
            expected_gain_db=9.31,
            measured_gain="+6.1 points",
        ),
        Finding(
            "SH1",
            "One module serves two ranges",
            "W",
            "shared.conv",
            "Split it: its calls differ 9x in range.",
            "Fl",
            (Evidence("ratio", 9.0, "x", "2"), Evidence("calls", 2)),
            related=("RG1 W: One standard deviation spans only 2.5 int8 codes",),
        ),
        Finding("IN2", "The input is one-sided", "W", "quant", "Normalise around 0.", "F", (Evidence("bits lost", 1),)),
        Finding("RG1", "Follows from the first", "I", UNICODE, "Look at its input first.", "0", origin="propagated"),
    )
