"""Engines: what answers the questions of a teacher. Imported only where one is used."""
