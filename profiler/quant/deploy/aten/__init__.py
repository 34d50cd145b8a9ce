"""Emitters of the aten operators, one file per kind."""

from profiler.quant.deploy.aten import activation as activation
from profiler.quant.deploy.aten import composed as composed
from profiler.quant.deploy.aten import elementwise as elementwise
from profiler.quant.deploy.aten import index as index
from profiler.quant.deploy.aten import norm as norm
from profiler.quant.deploy.aten import pool as pool
from profiler.quant.deploy.aten import products as products
from profiler.quant.deploy.aten import reduce as reduce
from profiler.quant.deploy.aten import resize as resize
from profiler.quant.deploy.aten import scans as scans
from profiler.quant.deploy.aten import shape as shape
from profiler.quant.deploy.emitters import emitter_names, emitter_of

__all__ = ["emitter_names", "emitter_of"]
