"""Images in pairs or two sets: folders, the embedded synthetic set, batches."""

from gancomp.data.config import DataConfig
from gancomp.data.datasets import Batch, ImageDataset, Pair, PairedDataset, open_dataset, stack_pairs
from gancomp.data.images import image_grid, read_image, save_image, to_image, to_tensor, to_uint8
from gancomp.data.labels import paint_labels
from gancomp.data.loader import eval_batches, train_batches

__all__ = [
    "Batch",
    "DataConfig",
    "ImageDataset",
    "Pair",
    "PairedDataset",
    "eval_batches",
    "image_grid",
    "open_dataset",
    "paint_labels",
    "read_image",
    "save_image",
    "stack_pairs",
    "to_image",
    "to_tensor",
    "to_uint8",
    "train_batches",
]
