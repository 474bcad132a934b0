"""Running a conversion: shards over workers, on this machine or on a Ray cluster, with retries, commits and resume.

Holds no conversion logic: it calls the pure functions of ``pipeline``.
"""
