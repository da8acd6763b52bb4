"""A validation's report: its data, its forms as HTML, Markdown and text, and the comparison of two reports.

Called by `validate.output`, `cli.validation` and the sections.
"""
