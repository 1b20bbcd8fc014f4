"""`report.html`: what a person reads about a bundle, drawn from what the bundle keeps.

Nothing here computes a figure anew, and nothing imports torch: a report can be made again wherever
a bundle can be opened.
"""
