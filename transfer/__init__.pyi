# The table of contents; `__init__.py` reads it at run time.
# ruff: noqa: I001  in the order of the work, not of the alphabet

# What is raised for bad input, and the options of `python -m transfer.train`.
from .errors import InputError as InputError
from .config import TrainConfig as TrainConfig

# Data: a folder, a list, a tensorflow_datasets name or arrays -> pictures in three splits, checked.
from .datasets import ImageData as ImageData
from .datasets import load_data as load_data
from .data_report import DataReport as DataReport

# Batches: a split -> a tf.data.Dataset, for loops of your own.
from .pipeline import class_weights as class_weights
from .pipeline import make_dataset as make_dataset

# Cases: what each of the four means, and which is yours.
from .cases import Case as Case
from .cases import rule_of_thumb as rule_of_thumb
from .advice_report import Advice as Advice
from .adviser import advise as advise
from .comparison import compare as compare

# Networks: by name, from keras.applications or from the package registry.
from .backbones import backbone_names as backbone_names
from .backbones import block_ends as block_ends
from .backbones import load_backbone as load_backbone
from .efficientnet_lite import EfficientNetLite0 as EfficientNetLite0
from .efficientnet_lite import EfficientNetLite1 as EfficientNetLite1
from .efficientnet_lite import EfficientNetLite2 as EfficientNetLite2
from .demo_cnn import DemoCNN as DemoCNN
from .shapes import SHAPES as SHAPES
from .shapes import make_shapes as make_shapes

# Builders: a network -> a compiled model of a case.
from .builders import build as build
from .builders import large_different as large_different
from .builders import large_similar as large_similar
from .builders import small_different as small_different
from .builders import small_similar as small_similar
from .builders import unfreeze as unfreeze

# Training and after.
from .training_run import TrainingLog as TrainingLog
from .training import fit as fit
from .recipes import Recipe as Recipe
from .checkpoints import Interrupted as Interrupted
from .rate_finder import find_learning_rate as find_learning_rate
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .evaluation import calibrate as calibrate
from .class_tree import merge as merge
from .class_tree import read_tree as read_tree
from .class_tree import training_classes as training_classes
from .screening import Screening as Screening
from .screening import screening as screening

# What a run leaves: its model, its names, its figures; predictions, explanations, and files for elsewhere.
from .runs import FinishedRun as FinishedRun
from .runs import load_run as load_run
from .predict import Prediction as Prediction
from .predict import predict as predict
from .explain import grad_cam as grad_cam
from .explain import occlusion as occlusion
from .explain import strongest_responses as strongest_responses
from .export import export as export

# The course: drawings in the lesson's manner, and how transferable the layers of a network are.
from .demo_plots import filters_plot as filters_plot
from .demo_plots import lesson_drawing as lesson_drawing
from .transferability import Transferability as Transferability
from .transferability import transferability as transferability
