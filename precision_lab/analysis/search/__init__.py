"""Strategies of a search for recipes, as ask and tell on plain values; nothing here evaluates a model.

`menu` holds what may be chosen and what it is predicted to cost, `knapsack` and `greedy` choose by the predictions,
`exchange` improves a choice by what trials measure, `families` lets Optuna choose rules, and `additivity` compares
predictions with measurements.
"""
