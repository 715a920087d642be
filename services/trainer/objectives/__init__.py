"""Training objectives, one file each over the loss interface of `services.trainer.loss`; `catalog` lists them."""
