"""Scores of images and generators, and measured latency."""

from gancomp.metrics.evaluate import HIGHER_IS_BETTER, METRICS, Evaluator
from gancomp.metrics.features import FeatureExtractor, load_extractor
from gancomp.metrics.frechet import Statistics, StatisticsAccumulator, frechet_distance
from gancomp.metrics.image import l1, psnr, ssim
from gancomp.metrics.latency import Latency, generator_call, measure_latency

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "Evaluator",
    "FeatureExtractor",
    "Latency",
    "Statistics",
    "StatisticsAccumulator",
    "frechet_distance",
    "generator_call",
    "l1",
    "load_extractor",
    "measure_latency",
    "psnr",
    "ssim",
]
