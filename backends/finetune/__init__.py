"""Sequential fine-tuning with CRMA: tasks in sequence on one base model, by PyTorch or JAX."""
