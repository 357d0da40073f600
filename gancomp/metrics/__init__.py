"""Scores of images and generators, and measured latency."""

from gancomp.metrics.evaluate import HIGHER_IS_BETTER, METRICS, SEGMENTATION, Evaluator, TeacherImages
from gancomp.metrics.features import FeatureExtractor, load_extractor
from gancomp.metrics.frechet import Statistics, StatisticsAccumulator, frechet_distance
from gancomp.metrics.image import l1, psnr, ssim
from gancomp.metrics.latency import Latency, engine_call, generator_call, measure_latency, random_images
from gancomp.metrics.roofline import Roofline, measure_roofline
from gancomp.metrics.runner import Runner, engine_on
from gancomp.metrics.segmentation import load_segmenter

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "SEGMENTATION",
    "Evaluator",
    "FeatureExtractor",
    "Latency",
    "Roofline",
    "Runner",
    "Statistics",
    "StatisticsAccumulator",
    "TeacherImages",
    "engine_call",
    "engine_on",
    "frechet_distance",
    "generator_call",
    "l1",
    "load_extractor",
    "load_segmenter",
    "measure_latency",
    "measure_roofline",
    "psnr",
    "random_images",
    "ssim",
]
