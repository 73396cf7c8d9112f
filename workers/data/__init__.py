"""Labelled images: data sets by name, split, normalised and dealt out in batches."""

from workers.data.base import DATA, DataSet, ImageData, load_data

__all__ = ["DATA", "DataSet", "ImageData", "load_data"]
