"""Local training in a hospital: by which algorithm, which loss it minimises, on what; and the prediction after it."""

from fedplatform.learning.parameters import PersonalState
from fedplatform.learning.training.algorithms import (
    ALGORITHMS,
    APFL,
    Algorithm,
    Ditto,
    FedAvg,
    FedBN,
    FedBNP,
    FedPer,
    FedProx,
    FedRep,
    Scaffold,
    SiloBN,
)
from fedplatform.learning.training.augmentation import (
    AUGMENTATIONS,
    Anatomy,
    Augmentation,
    Mirror,
    Orientation,
    Scanner,
)
from fedplatform.learning.training.objectives import (
    OBJECTIVES,
    AdversarialTraining,
    Batch,
    CrossEntropy,
    Generative,
    Objective,
    Trades,
)
from fedplatform.learning.training.sampling import SamplingName
from fedplatform.learning.training.schedule import SCHEDULES, Constant, Cosine, Schedule, Step
from fedplatform.learning.training.trainer import LEAST_BATCH, LocalTraining, Stopped, Trainer

__all__ = [
    "ALGORITHMS",
    "APFL",
    "AUGMENTATIONS",
    "LEAST_BATCH",
    "OBJECTIVES",
    "SCHEDULES",
    "AdversarialTraining",
    "Algorithm",
    "Anatomy",
    "Augmentation",
    "Batch",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Ditto",
    "FedAvg",
    "FedBN",
    "FedBNP",
    "FedPer",
    "FedProx",
    "FedRep",
    "Generative",
    "LocalTraining",
    "Mirror",
    "Objective",
    "Orientation",
    "PersonalState",
    "SamplingName",
    "Scaffold",
    "Scanner",
    "Schedule",
    "SiloBN",
    "Step",
    "Stopped",
    "Trades",
    "Trainer",
]
