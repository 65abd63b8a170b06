"""What runs inside a driver's own environment: one program for each driver, which prints what it observes.

These modules import nothing of pgtenant.
"""
