"""The privacy core: events, accountants, calibration, mechanisms, plan, ledger.

Imports neither Flower nor torch; everything here works on numbers and numpy arrays.
"""
