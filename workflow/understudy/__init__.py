"""understudy: tune a large model's fine-tuning on a small proxy first, then refine at full size."""

__version__ = "0.1.0"
