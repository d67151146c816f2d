"""Examination: arena statistics and calibration."""
