"""What every GPU kernel costs on every target: measured on the compiled code, held against the budgets.

``python -m tools.budgets --write`` writes docs/kernel_budgets.md, ``--check`` compares the build with it.
"""
