"""One published method a module, which holds a class of the same name: ``foveate.methods.IDPruner`` in ``idpruner``.

None is imported before it is asked for, by its class or, with `get_method`, by its name:

Examples:
    >>> foveate.methods.IDPruner(balance=0.7) == foveate.get_method("idpruner", balance=0.7)
    True
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .toolkit.base import Method, ModelFacts, Provenance, Stage, Where
from .toolkit.published import published
from .toolkit.registry import get_method, method_names, register_method

if TYPE_CHECKING:  # what `__getattr__` finds, for editors and type checkers
    from .adatp import AdaTp as AdaTp
    from .agilepruner import AgilePruner as AgilePruner
    from .anchored import Anchored as Anchored
    from .anchormerge import AnchorMerge as AnchorMerge
    from .apet import Apet as Apet
    from .avgpool import AvgPool as AvgPool
    from .cdpruner import CDPruner as CDPruner
    from .cenprune import CenPrune as CenPrune
    from .clse import Clse as Clse
    from .cosine import Cosine as Cosine
    from .d2pruner import D2Pruner as D2Pruner
    from .dart import Dart as Dart
    from .divprune import DivPrune as DivPrune
    from .divrandom import DivRandom as DivRandom
    from .duet import Duet as Duet
    from .eadp import Eadp as Eadp
    from .evidence import Evidence as Evidence
    from .evs import Evs as Evs
    from .fastervlm import FasterVlm as FasterVlm
    from .fastmmoe import FastMMoE as FastMMoE
    from .fastv import FastV as FastV
    from .flashvid import FlashVid as FlashVid
    from .flowcut import FlowCut as FlowCut
    from .geoprune import GeoPrune as GeoPrune
    from .hawk import Hawk as Hawk
    from .hiprune import HiPrune as HiPrune
    from .holov import HoloV as HoloV
    from .idpruner import IDPruner as IDPruner
    from .idselection import IdSelection as IdSelection
    from .ivcprune import IvcPrune as IvcPrune
    from .litelvlm import LiteLVLM as LiteLVLM
    from .mmgvid import MmgVid as MmgVid
    from .mmtok import MMTok as MMTok
    from .modes import Modes as Modes
    from .nuwa import Nuwa as Nuwa
    from .otprune import OTPrune as OTPrune
    from .par import Par as Par
    from .pixelprune import PixelPrune as PixelPrune
    from .priortr import PriorTR as PriorTR
    from .prunesid import PruneSid as PruneSid
    from .pyramiddrop import PyramidDrop as PyramidDrop
    from .random import Random as Random
    from .restore import Restore as Restore
    from .scope import Scope as Scope
    from .sms import Sms as Sms
    from .sparsevlm import SparseVlm as SparseVlm
    from .stride import Stride as Stride
    from .tome import ToMe as ToMe
    from .tops import Tops as Tops
    from .transprune import TransPrune as TransPrune
    from .trim import Trim as Trim
    from .v2drop import V2Drop as V2Drop
    from .vidcom2 import VidCom2 as VidCom2
    from .visionselector import VisionSelector as VisionSelector
    from .visionzip import VisionZip as VisionZip
    from .visipruner import VisiPruner as VisiPruner
    from .vispruner import VisPruner as VisPruner
    from .vlmpruner import VlmPruner as VlmPruner
    from .vscan import VScan as VScan

__all__ = [
    "Method",
    "ModelFacts",
    "Provenance",
    "Stage",
    "Where",
    "get_method",
    "method_names",
    "published",
    "register_method",
]


def __getattr__(name: str) -> Any:
    module = f"{__name__}.{name.lower()}"
    found = None
    if name != name.lower() and name.isidentifier() and name[0] != "_" and find_spec(module) is not None:
        found = getattr(import_module(module), name, None)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    from .toolkit.registry import method_class

    own = (method_class(name) for name in method_names())
    return sorted({*globals(), *(cls.__name__ for cls in own if cls.__module__.startswith(f"{__name__}."))})
