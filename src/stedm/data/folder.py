"""The dataset folder: `metadata.csv` (or .parquet), pictures, masks, `dataset.yaml`."""
