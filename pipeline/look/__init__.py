"""Looking at a dataset: show, stats, preview, export."""
