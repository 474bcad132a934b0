"""The dataset on disk: written, committed, opened, validated."""
