"""Pretraining, fine-tuning and DPO one after the other on a made corpus: a new size needs no foreign weights."""
