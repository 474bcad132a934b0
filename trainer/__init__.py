"""Fine-tuning a Hugging Face decoder on stream grids, with a fused stream-mask kernel.

Nothing is here yet. The trainer will read datasets through ``pipeline.open_dataset`` alone, and torch will live here
and nowhere else in the project.
"""
