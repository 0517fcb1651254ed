"""Names of splits, metrics and files: the only place where they are spelled."""

from __future__ import annotations

# Splits
TRAIN = "train"
ID_VALIDATION = "id_validation"
ID_TEST = "id_test"
OOD_PREFIX = "ood/"

# Metrics of one evaluation set
ACCURACY = "accuracy"
BALANCED_ACCURACY = "balanced_accuracy"
MACRO_F1 = "macro_f1"
F1 = "f1"  # of entities, or of the words of answers
EXACT_MATCH = "exact_match"
PRECISION = "precision"
RECALL = "recall"
BRIER = "brier"
ECE = "ece"
BRIER_CALIBRATED = "brier_calibrated"  # at the temperature that fits ID validation
ECE_CALIBRATED = "ece_calibrated"
PREDICTION_DEPTH = "prediction_depth"  # mean depth as a share of the layers
LOSS = "loss"  # of a Trainer's own evaluation
WORST_GROUP = "worst_group"  # after a metric: accuracy_worst_group
GROUP_PERCENTILE = "group_p10"  # as above

# Over the OOD sets
OOD_MACRO_MEAN = "ood_macro_mean"
OOD_WORST = "ood_worst"
GAP_TO_ID = "gap_to_id"
RELATIVE_ROBUSTNESS = "relative_robustness"

# Columns of a loaded data set, and of a tokenized one
TEXT = "text"
TEXT_PAIR = "text_pair"
LABEL = "label"
LABELS = "labels"
ID = "id"
GROUP = "group"
TOKENS = "tokens"
TAGS = "tags"
QUESTION = "question"
CONTEXT = "context"
ANSWERS = "answers"
CHOICES = "choices"

# Columns of predictions, besides "id", "label" and "group"
SPLIT = "split"
PREDICTION = "prediction"
PROBABILITIES = "probabilities"
SCORE = "score"
DEPTH = "depth"

# Tasks
SEQUENCE_CLASSIFICATION = "sequence_classification"
TOKEN_CLASSIFICATION = "token_classification"
QUESTION_ANSWERING = "question_answering"
MULTIPLE_CHOICE = "multiple_choice"

# Ways of training
STANDARD = "standard"
GRADUAL_UNFREEZING = "gradual_unfreezing"
LISA = "lisa"
AUTOFREEZE = "autofreeze"

# What chose the weights of a run, if nothing else did
LAST_UPDATE = "last update"

# Files of a run folder
CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
EVALUATION_FILE = "evaluation.json"
DYNAMICS_FILE = "dynamics.jsonl"
PREDICTIONS_FILE = "predictions.parquet"
FIRST_STAGE_FILE = "first_stage.safetensors"
# transformers does not push what begins with _
START_WEIGHTS_FILE = "_trajectory/start.safetensors"
PERTURBATION_START_FILE = "_perturbation/start.safetensors"
PRETEXT_FILE = "pretext.pt"  # in a checkpoint
SIGNAL_FIGURE = "signal.png"
COMPARISON_FIGURE = "comparison.png"
MODEL_FOLDER = "model"
TENSORBOARD_FOLDER = "tensorboard"

# While a process is at work on a run or a study
CLAIM_FILE = ".claim"

# Files of a study folder
STUDY_FILE = "study.json"
VERDICT_FILE = "verdict.txt"

# What a report writes, into the folder of a run or a study unless another is named
REPORT_FILE = "report.html"
REPORT_FIGURES_FOLDER = "report_figures"

# File of a folder with measurements of saved models
PROBE_FILE = "probe.json"

# Files of a folder with prediction depths
DEPTH_FILE = "depth.json"
DEPTHS_FILE = "depth.parquet"

# Files of a folder with a similarity before training
SIMILARITY_FILE = "similarity.json"
SIMILARITY_FIGURE = "similarity.png"

# Files of a folder with the movement along checkpoints
TRAJECTORY_FILE = "trajectory.json"
TRAJECTORY_FIGURE = "trajectory.png"

# Signals
FISHER_TRACE = "fisher_trace"
RELATIVE_GRADIENT_NORM = "relative_gradient_norm"
TRAJECTORY = "trajectory"
SELECTION = "selection"  # then /<measure>: of all groups, to choose the next one

# Keys in Trainer logs, and so in trackers; README has them in a table
LOG = "early_ood"  # then /<measure>, and /<measure>/<group>; in a tracker's configuration: our settings
LOG_STAGE = f"{LOG}/stage"
LOG_TRAINABLE = f"{LOG}/trainable_parameters"
LOG_TRAINS = f"{LOG}/trains"  # then /<group>; 1: it trains from now on, 0: it is frozen
LOG_DECISION = f"{LOG}/decision"
LOG_LEARNING_RATE = f"{LOG}/learning_rate"  # then /<group>
LOG_RATE_FACTOR = f"{LOG}/learning_rate_factor"  # then /<group>
LOG_GENERATION = f"{LOG}/generation"
LOG_ASCENDING = f"{LOG}/ascending"  # 1: early layers go up the gradient
LOG_FISHER_PENALTY = f"{LOG}/fisher_penalty"
LOG_PERTURBATION = f"{LOG}/perturbation"  # then /<group>; effective standard deviation
LOG_PRETEXT = f"{LOG}/pretext"  # 1: something else than the task is trained from now on, 0: the task

LOG_SETTINGS = f"{LOG}/settings"  # a text


def ood(name: str) -> str:
    """Name of the OOD split ``name``.

    Example:
        >>> ood("movie")
        'ood/movie'
    """
    return name if name.startswith(OOD_PREFIX) else OOD_PREFIX + name


def is_ood(split: str) -> bool:
    """Whether ``split`` is an out-of-distribution split."""
    return split.startswith(OOD_PREFIX)
