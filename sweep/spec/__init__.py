"""What was asked: the study file as typed models."""

from sweep.spec.knobs import Choices, Distribution, FloatRange, IntRange, encode_choice
from sweep.spec.load import StudyFile, divergence_rules, load_spec, validate
from sweep.spec.setting import EarlyStopping, Setting
from sweep.spec.study import DataSpec, DivergenceSpec, FoldsSpec, StudySpec, TrainSpec

__all__ = [
    "Choices",
    "DataSpec",
    "Distribution",
    "DivergenceSpec",
    "EarlyStopping",
    "FloatRange",
    "FoldsSpec",
    "IntRange",
    "Setting",
    "StudyFile",
    "StudySpec",
    "TrainSpec",
    "divergence_rules",
    "encode_choice",
    "load_spec",
    "validate",
]
