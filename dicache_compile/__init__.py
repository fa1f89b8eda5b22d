"""Compiles a diffusion transformer into a step that decides by itself whether to run its deep blocks.

model.compile(backend="dicache", fullgraph=True)
"""

from .artifacts import load, save
from .backend import dicache_backend
from .calibration import Recording, calibrate, record
from .calls.generation import generation
from .calls.guidance_batch import split_guidance
from .calls.streams import stream
from .config import DiCacheConfig
from .configure import configure
from .enable import disable_cache, enable_cache
from .explain import explain
from .integrations import listen as _listen
from .packages import export_graph, load_package, save_package
from .ranks import Ranks
from .report import report
from .reset import reset
from .schedules import Schedule
from .site_rule import SiteRule
from .summary import summary
from .tune import tune

__version__ = "0.1.0"

__all__ = [
    "DiCacheConfig",
    "Ranks",
    "Recording",
    "Schedule",
    "SiteRule",
    "__version__",
    "calibrate",
    "configure",
    "dicache_backend",
    "disable_cache",
    "enable_cache",
    "explain",
    "export_graph",
    "generation",
    "load",
    "load_package",
    "record",
    "report",
    "reset",
    "save",
    "save_package",
    "split_guidance",
    "stream",
    "summary",
    "tune",
]

# Here, not in the backend: the first call of a pipeline's first generation already has a name.
_listen()
