"""What a method is made of: the base class, the registry, and the pieces that several methods share.

Packages of your own may import everything that is listed here; it changes only with a note in the changelog.

| for | use |
|---|---|
| a method | `Method`, `Provenance`, `ModelFacts`, `register_method`, `published` |
| where it prunes | `Stage`, `Where`, `StagedMethod`, `HybridMethod`, `TwoStageMethod`, `AtLayer`, `InEncoder` |
| around another method | `Wrapper`, `Transparent` |
| a smaller model that reads first | `Guided`, `Guide` |
| budgets of several stages | `proportional`, `geometric`, `layer_average`, `layers_like`, `shares_like` |
| types of hyperparameters | `Share`, `PositiveShare`, `Cosine`, `Layer`, `Layers`, `Proportions` |
| and constraints of them | `Between`, `AtLeast`, `Above`, `Rising` |
| hyperparameters that go together | `check_falling`, `check_layer_of`, `check_layers_of` |
| what is compared | `cues_of`, `features_of`, `centre` |
| the prompt's text | `by_image`, `relevance_of`, `attention_of_text`, `mean_over_heads`, `mean_of_rows`, `mean_of` |
| parts of an image | `largest_remainder`, `region_of`, `full_windows`, `rank_within`, `check_undropped` |
| how many to keep | `count_distinct` |
| choosing | `TopK`, `peaks`, `RunningMoments`, `greedy_coverage`, and the selectors in `foveate.selection` |
| merging | `nearest`, `identity_targets`, `group_size`, `Mixture` |
| the language model | `AttentionEdit`, `LogitBias`, `ExpertCut`, `ExpertSkip` |
| a line for the user | `Note` |
| tests | `check_contract` |
"""

from .apportion import largest_remainder
from .at_layer import AtLayer
from .base import Method, ModelFacts, Provenance, Stage, Where
from .centring import centre
from .constraints import Above, AtLeast, Between, Cosine, Layer, Layers, PositiveShare, Proportions, Rising, Share
from .contract import check_contract
from .density_peaks import RunningMoments, peaks
from .distinct import count_distinct
from .feature_source import cues_of, features_of
from .guided import Guided, guided
from .in_encoder import InEncoder
from .interventions import AttentionEdit, ExpertCut, ExpertSkip, Guide, LogitBias
from .max_coverage import greedy_coverage
from .merging import Mixture, group_size, identity_targets, nearest
from .notes import Note
from .published import published
from .regions import full_windows, rank_within, region_of
from .registry import get_method, method_names, register_method
from .schedules import geometric, layer_average, layers_like, proportional, shares_like
from .staged import StagedMethod
from .text_relevance import attention_of_text, by_image, mean_of, mean_of_rows, mean_over_heads, relevance_of
from .top_k import TopK
from .two_stage import HybridMethod, TwoStageMethod
from .validation import check_falling, check_layer_of, check_layers_of, check_undropped
from .wrapper import Transparent, Wrapper

__all__ = [
    "Above",
    "AtLayer",
    "AtLeast",
    "AttentionEdit",
    "Between",
    "Cosine",
    "ExpertCut",
    "ExpertSkip",
    "Guide",
    "Guided",
    "HybridMethod",
    "InEncoder",
    "Layer",
    "Layers",
    "LogitBias",
    "Method",
    "Mixture",
    "ModelFacts",
    "Note",
    "PositiveShare",
    "Proportions",
    "Provenance",
    "Rising",
    "RunningMoments",
    "Share",
    "Stage",
    "StagedMethod",
    "TopK",
    "Transparent",
    "TwoStageMethod",
    "Where",
    "Wrapper",
    "attention_of_text",
    "by_image",
    "centre",
    "check_contract",
    "check_falling",
    "check_layer_of",
    "check_layers_of",
    "check_undropped",
    "count_distinct",
    "cues_of",
    "features_of",
    "full_windows",
    "geometric",
    "get_method",
    "greedy_coverage",
    "group_size",
    "guided",
    "identity_targets",
    "largest_remainder",
    "layer_average",
    "layers_like",
    "mean_of",
    "mean_of_rows",
    "mean_over_heads",
    "method_names",
    "nearest",
    "peaks",
    "proportional",
    "published",
    "rank_within",
    "region_of",
    "register_method",
    "relevance_of",
    "shares_like",
]
