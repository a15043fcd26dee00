"""A task of the user's own: a LightningModule and a LightningDataModule."""
