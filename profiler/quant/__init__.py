"""The quantization core: prepare, calibrate, train, convert."""

from profiler.quant import ops
from profiler.quant.affine import qinfo, qint4, qint8, qint16, qint32
from profiler.quant.calibration.auto import auto_calibrate, auto_calibration
from profiler.quant.calibration.reconstruction import weight_reconstruction
from profiler.quant.checking.check import check_qat_model
from profiler.quant.consistency import ConsistencyStrategy
from profiler.quant.deploy.check import check_model
from profiler.quant.deploy.compile import compile_model, load_compiled
from profiler.quant.deploy.device import check_deploy_device
from profiler.quant.deploy.perf import perf_model
from profiler.quant.deploy.viewing import export_quantized_onnx, export_to_onnx
from profiler.quant.deploy.visualize import visualize_model
from profiler.quant.eager.convert import convert
from profiler.quant.eager.fuse import fuse_known_modules, fuse_modules
from profiler.quant.eager.prepare import prepare_qat
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.finite import nan_check
from profiler.quant.freezing import freeze_part, reset_part, unfreeze_part
from profiler.quant.fx.fuse import FuseMode
from profiler.quant.fx.prepare import convert_fx, fuse_fx, prepare_qat_fx
from profiler.quant.learned_fake_quant import PACTFakeQuantize, _LearnableFakeQuantize
from profiler.quant.loading import load_calib_state_dict, load_observer_params
from profiler.quant.march import March, get_march, set_march
from profiler.quant.observers import (
    ClipObserver,
    ClipStdObserver,
    FixedScaleObserver,
    HistogramObserver,
    KLObserver,
    MinMaxObserver,
    MixObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    MSEObserver,
    PercentileObserver,
)
from profiler.quant.ops.colour import (
    bgr2centered_gray,
    bgr2centered_yuv,
    bgr2gray,
    bgr2rgb,
    bgr2yuv,
    centered_yuv2bgr,
    centered_yuv2rgb,
    rgb2bgr,
    rgb2centered_gray,
    rgb2centered_yuv,
    rgb2gray,
    rgb2yuv,
)
from profiler.quant.ops.float_functional import FloatFunctional
from profiler.quant.ops.module_forms import (
    Ceil,
    Cos,
    Div,
    Erf,
    Exp,
    Floor,
    HardLog,
    Interpolate,
    Log,
    Pow,
    Reciprocal,
    Sin,
    Sqrt,
)
from profiler.quant.ops.segment_lut import SegmentLUT
from profiler.quant.policy import set_state_policy
from profiler.quant.preparing import PrepareMethod, prepare
from profiler.quant.preserve import set_preserve_qat_mode
from profiler.quant.qat_mode import QATMode, set_qat_mode
from profiler.quant.qconfig import (
    QConfig,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_16bit_act_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_calib_out_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_fixed_act_fake_quant_qconfig,
    default_qat_8bit_lsq_quant_qconfig,
    default_qat_8bit_weight_16bit_act_fake_quant_qconfig,
    default_qat_8bit_weight_32bit_out_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    default_qat_out_8bit_fake_quant_qconfig,
    get_default_calib_qconfig,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    get_qconfig,
)
from profiler.quant.qtensor import QTensor
from profiler.quant.quantize import Stages, quantize
from profiler.quant.requantize import set_requantization
from profiler.quant.setters.sensitivity import SensitivityTemplate
from profiler.quant.setters.setter import QconfigSetter
from profiler.quant.setters.templates import ConvDtypeTemplate, MatmulDtypeTemplate, ModuleNameTemplate
from profiler.quant.states import FakeQuantState, set_fake_quantize
from profiler.quant.stubs import DeQuantStub, QuantStub
from profiler.quant.switches import FakeCast, GlobalFakeQuantSwitch
from profiler.quant.wrapping import Tracer, wrap

__all__ = [
    "Ceil",
    "ClipObserver",
    "ClipStdObserver",
    "ConsistencyStrategy",
    "ConvDtypeTemplate",
    "Cos",
    "DeQuantStub",
    "Div",
    "Erf",
    "Exp",
    "FakeCast",
    "FakeQuantState",
    "FakeQuantize",
    "FixedScaleObserver",
    "FloatFunctional",
    "Floor",
    "FuseMode",
    "GlobalFakeQuantSwitch",
    "HardLog",
    "HistogramObserver",
    "Interpolate",
    "KLObserver",
    "Log",
    "MSEObserver",
    "March",
    "MatmulDtypeTemplate",
    "MinMaxObserver",
    "MixObserver",
    "ModuleNameTemplate",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PACTFakeQuantize",
    "PercentileObserver",
    "Pow",
    "PrepareMethod",
    "QATMode",
    "QConfig",
    "QTensor",
    "QconfigSetter",
    "QuantStub",
    "Reciprocal",
    "SegmentLUT",
    "SensitivityTemplate",
    "Sin",
    "Sqrt",
    "Stages",
    "Tracer",
    "_LearnableFakeQuantize",
    "auto_calibrate",
    "auto_calibration",
    "bgr2centered_gray",
    "bgr2centered_yuv",
    "bgr2gray",
    "bgr2rgb",
    "bgr2yuv",
    "centered_yuv2bgr",
    "centered_yuv2rgb",
    "check_deploy_device",
    "check_model",
    "check_qat_model",
    "compile_model",
    "convert",
    "convert_fx",
    "default_calib_8bit_fake_quant_qconfig",
    "default_calib_8bit_weight_16bit_act_fake_quant_qconfig",
    "default_calib_8bit_weight_32bit_out_fake_quant_qconfig",
    "default_calib_16bit_fake_quant_qconfig",
    "default_calib_out_8bit_fake_quant_qconfig",
    "default_qat_8bit_fake_quant_qconfig",
    "default_qat_8bit_fixed_act_fake_quant_qconfig",
    "default_qat_8bit_lsq_quant_qconfig",
    "default_qat_8bit_weight_16bit_act_fake_quant_qconfig",
    "default_qat_8bit_weight_32bit_out_fake_quant_qconfig",
    "default_qat_16bit_fake_quant_qconfig",
    "default_qat_out_8bit_fake_quant_qconfig",
    "export_quantized_onnx",
    "export_to_onnx",
    "freeze_part",
    "fuse_fx",
    "fuse_known_modules",
    "fuse_modules",
    "get_default_calib_qconfig",
    "get_default_qat_out_qconfig",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "get_march",
    "get_qconfig",
    "load_calib_state_dict",
    "load_compiled",
    "load_observer_params",
    "nan_check",
    "ops",
    "perf_model",
    "prepare",
    "prepare_qat",
    "prepare_qat_fx",
    "qinfo",
    "qint4",
    "qint8",
    "qint16",
    "qint32",
    "quantize",
    "reset_part",
    "rgb2bgr",
    "rgb2centered_gray",
    "rgb2centered_yuv",
    "rgb2gray",
    "rgb2yuv",
    "set_fake_quantize",
    "set_march",
    "set_preserve_qat_mode",
    "set_qat_mode",
    "set_requantization",
    "set_state_policy",
    "unfreeze_part",
    "visualize_model",
    "weight_reconstruction",
    "wrap",
]
