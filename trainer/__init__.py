"""Fine-tuning a Hugging Face decoder on stream grids, with a fused stream-mask kernel.

So far there is ``trainer.attention``, the kernel. The trainer around it will read datasets through
``pipeline.open_dataset`` alone; torch lives here and nowhere else in the project.
"""
