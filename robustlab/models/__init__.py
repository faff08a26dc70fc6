"""Small reference architectures, built by name, each with its normalization as its first layer."""

from robustlab.models.architectures import ResidualBlock, mlp, resnet_tiny, small_cnn
from robustlab.models.boxes import average_precision, detected, detections
from robustlab.models.characters import CharacterGRU, character_gru, next_character
from robustlab.models.detectors import Detector, anchor_detector, detection_training, point_detector
from robustlab.models.graphs import GraphConvolution, GraphNet, OnGraph, graph_net
from robustlab.models.hiding import Thermometer, thermometer_cnn
from robustlab.models.normalize import Normalize
from robustlab.models.registry import build, builders, register
from robustlab.models.speech import Recognizer, Spectrogram, ctc_loss, speech_cnn, speech_gru, transcripts
from robustlab.models.text import NaiveBayes, text_bag, text_cnn, text_lstm
from robustlab.models.vae import ClassVAE, class_vae

__all__ = [
    "CharacterGRU",
    "ClassVAE",
    "Detector",
    "GraphConvolution",
    "GraphNet",
    "NaiveBayes",
    "Normalize",
    "OnGraph",
    "Recognizer",
    "ResidualBlock",
    "Spectrogram",
    "Thermometer",
    "anchor_detector",
    "average_precision",
    "build",
    "builders",
    "character_gru",
    "class_vae",
    "ctc_loss",
    "detected",
    "detection_training",
    "detections",
    "graph_net",
    "mlp",
    "next_character",
    "point_detector",
    "register",
    "resnet_tiny",
    "small_cnn",
    "speech_cnn",
    "speech_gru",
    "text_bag",
    "text_cnn",
    "text_lstm",
    "thermometer_cnn",
    "transcripts",
]
