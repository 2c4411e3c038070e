# The public API: `__init__.py` reads this list at run time.
# ruff: noqa: I001  in the order of use, not of the alphabet

__version__: str

# Data: a folder, a list, a tensorflow_datasets name or arrays -> checked images in three splits.
from .images.image_data import ImageData as ImageData
from .images.datasets import load_data as load_data
from .images.data_report import DataReport as DataReport

# Batches: a split -> a tf.data.Dataset, for your own training loop.
from .images.pipeline import class_weights as class_weights
from .images.pipeline import make_dataset as make_dataset

# Cases: the four cases, and advice on which one to use.
from .cases.policies import Case as Case
from .cases.policies import rule_of_thumb as rule_of_thumb
from .adviser.advice import Advice as Advice
from .adviser.advise import advise as advise
from .adviser.comparison import compare as compare

# Networks by name.
from .networks.backbones import backbone_names as backbone_names
from .networks.backbones import block_ends as block_ends
from .networks.backbones import load_backbone as load_backbone
from .networks.efficientnet_lite import EfficientNetLite0 as EfficientNetLite0
from .networks.efficientnet_lite import EfficientNetLite1 as EfficientNetLite1
from .networks.efficientnet_lite import EfficientNetLite2 as EfficientNetLite2
from .networks.demo_cnn import DemoCNN as DemoCNN

# Builders: a network -> a compiled model of a case.
from .cases.builders import build as build
from .cases.builders import large_different as large_different
from .cases.builders import large_similar as large_similar
from .cases.builders import small_different as small_different
from .cases.builders import small_similar as small_similar
from .cases.builders import unfreeze as unfreeze
from .cases.decisions import CaseDecision as CaseDecision
from .cases.decisions import decision_of as decision_of

# Training and evaluation.
from .training.phases import TrainingLog as TrainingLog
from .training.fit import fit as fit
from .training.recipes import Recipe as Recipe
from .training.solved_again import SolvedAgain as SolvedAgain
from .training.solved_again import solve_again as solve_again
from .training.averaging import average as average
from .training.checkpoints import Interrupted as Interrupted
from .training.learning_rate_finder import find_learning_rate as find_learning_rate
from .evaluation.evaluation import Evaluation as Evaluation
from .evaluation.label_evaluation import LabelEvaluation as LabelEvaluation
from .evaluation.value_evaluation import ValueEvaluation as ValueEvaluation
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.evaluate import calibrate as calibrate
from .adviser.cross_validation import CrossValidation as CrossValidation
from .adviser.cross_validation import cross_validate as cross_validate
from .evaluation.class_tree import merge as merge
from .evaluation.class_tree import read_tree as read_tree
from .evaluation.class_tree import training_classes as training_classes
from .evaluation.screening import Screening as Screening
from .evaluation.screening import screening as screening

# Finished runs: load, predict, explain, export.
from .results.finished_runs import FinishedRun as FinishedRun
from .results.finished_runs import load_run as load_run
from .results.saved_runs import save_run as save_run
from .results.prediction import Prediction as Prediction
from .results.prediction import Predictions as Predictions
from .results.predict import predict as predict
from .evaluation.explanations import grad_cam as grad_cam
from .evaluation.explanations import occlusion as occlusion
from .evaluation.explanations import strongest_responses as strongest_responses
from .exporters.export import export as export

# Lessons: synthetic images, drawings, and how transferable the layers of a network are.
from .lesson.shapes import SHAPES as SHAPES
from .lesson.shapes import make_shapes as make_shapes
from .lesson.drawings import filters_plot as filters_plot
from .lesson.drawings import lesson_drawing as lesson_drawing
from .lesson.transferability import Transferability as Transferability
from .lesson.transferability import transferability as transferability

# The error for bad input, and the options of `python -m transfer.train`.
from .common.errors import InputError as InputError
from .config import TrainConfig as TrainConfig
