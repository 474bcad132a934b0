"""Validation: what can be derived again from a dataset's files, and from its inputs where they are there."""

from pipeline.store.validate.check import validate
from pipeline.store.validate.render import render
from pipeline.store.validate.report import MEANING, Checked, Code, Found, Problem, Report

__all__ = ["MEANING", "Checked", "Code", "Found", "Problem", "Report", "render", "validate"]
