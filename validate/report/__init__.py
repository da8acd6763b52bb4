"""A validation's report: its data, and its forms as HTML, Markdown and text; comparing two reports."""
